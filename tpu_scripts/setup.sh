#!/usr/bin/env bash
# Installs the commit that is checked out here on every worker of a slice.
#
#   setup.sh --name=NAME --zone=ZONE [--project=PROJECT] [--poll=30] [--tries=5] [--dry-run]
#
# Again after a change: it is quick then. A worker that cannot be reached yet is tried
# again. Exit codes: 0 installed everywhere, 1 not, 2 misused.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse 'name zone project poll tries' "$@"
check_resource
require gcloud git
make_scratch
warn_if_changed
set_up_workers || die "not installed on every worker of $name"
