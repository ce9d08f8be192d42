#!/usr/bin/env bash
# Deletes a slice, so that it costs nothing more. Buckets are left as they are.
#
#   teardown.sh --name=NAME --zone=ZONE [--project=PROJECT] [--poll=30] [--tries=5]
#               [--dry-run]
#
# One that is not there is no error. It returns when Cloud has deleted it.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse 'name zone project poll tries' "$@"
check_resource
require gcloud
make_scratch

find_state ACTIVE
if [ "$STATE" = NONE ]; then
  say "$name is not there; nothing to delete"
  exit 0
fi
delete_resource || die "$name is not deleted and may cost money; run this again"
find_state NONE
[ "$STATE" = NONE ] || die "$name is still $STATE; run this again"
