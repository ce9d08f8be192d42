#!/usr/bin/env bash
# Shows the log of a worker, and what runs on each.
#
#   watch.sh --name=NAME --zone=ZONE [--project=PROJECT] [--worker=0] [--lines=50]
#            [--follow] [--dry-run]
#
# With --follow it goes on until Ctrl-C, which does not stop the run. Worker 0 prints the
# progress; the others print what went wrong there.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse 'name zone project worker lines follow' "$@"
check_resource
whole worker lines
require gcloud
on_workers "$WORKER status" || say 'not every worker answers'
how=''
if [ "$follow" = 1 ]; then how=' follow'; fi
tpus ssh "$name" --node=0 --worker="$worker" --command="$WORKER log $lines$how"
