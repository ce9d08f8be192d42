#!/usr/bin/env bash
# Starts a command on every worker of a slice and returns.
#
#   launch.sh --name=NAME --zone=ZONE [--project=PROJECT] [--poll=30] [--tries=5]
#     [--dry-run] -- python -m epa_jax.train --distributed
#     --config=experiments/mistral_7b_epa.py:v5e-16 --config.workdir=gs://BUCKET/runs/first
#
# It runs in the folder of the code with its environment, goes on when this terminal is
# closed, and writes epa_job/log on its worker (watch.sh). Where a worker cannot be reached,
# it is stopped on the others. Exit codes: 0 started everywhere, 1 not, 2 misused.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse 'name zone project poll tries' "$@"
check_resource
has_command
require gcloud
start_job || die "not started on every worker of $name, and stopped on the others"
