#!/usr/bin/env bash
# Asks for a TPU slice as a queued resource and waits until it can be used.
#
#   create.sh --name=NAME --zone=ZONE --type=v5e-16 [options]
#
#   --name, --zone, --project, --type, --capacity
#                         also from EPA_NAME, EPA_ZONE, EPA_PROJECT, EPA_TYPE, EPA_CAPACITY
#   --type=v5e-16         generation and size, as plans and Cloud name them
#   --capacity=on-demand  or spot (cheap, may be taken away) or reserved
#   --slices=1            several slices that train together
#   --runtime=IMAGE       of the machines; by default the one of the generation
#   --valid-until=6h      give up asking after this time
#   --service-account, --network, --subnetwork
#                         of the machines; by default the project's
#   --wait-minutes=1440   how long to wait
#   --poll=30             seconds between two looks
#   --tries=5             how often an unreachable Cloud is asked
#   --dry-run             print the commands, run none
#
# One that is there already is waited for. Exit codes: 0 ready, 1 failed, 2 misused.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse 'name zone project type capacity slices runtime valid-until service-account network
 subnetwork wait-minutes poll tries' "$@"
check_resource
check_creation
require gcloud
make_scratch

find_state NONE
case $STATE in
  NONE) create_resource ;;
  FAILED | SUSPENDING | SUSPENDED | DELETING)
    die "$name is $STATE; remove it with teardown.sh, or let resume.sh make it anew"
    ;;
  *) say "$name is there already" ;;
esac
wait_active || die "$name is $STATE; why: $(why_failed)"
