#!/usr/bin/env bash
# Keeps a run going to its end: creates the slice, installs, starts, watches, and does it
# again when the slice was taken away or the run left with the code of a preemption (75)
# or of a lost process (134).
#
#   resume.sh --name=NAME --zone=ZONE --type=v5e-16 [options] -- COMMAND...
#
#   all options of create.sh, and
#   --retries=20   how often to go on after a preemption
#   --grace=10     looks for which some workers may run on when others have ended
#   --restart      stop what runs there and start COMMAND, instead of joining it
#
# The command finds its newest checkpoint by itself, so its workdir must outlive the slice:
# gs://BUCKET/... It starts on every worker. Run this on a machine that stays on; where it
# stopped, run it again: a run that goes on is joined, not started twice. A slice with a
# failed run is kept, to look at. Exit codes: 0 finished, 75 preempted more than
# --retries times, 2 misused, 1 the slice cannot be had or used, else that of the run.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# An active slice, made anew if it was lost.
have_slice() {
  local try
  for ((try = 1; try <= tries; try++)); do
    find_state NONE
    case $STATE in
      NONE) create_resource || return 1 ;;
      FAILED | SUSPENDING | SUSPENDED)
        say "$name is $STATE: made anew"
        delete_resource || return 1
        create_resource || return 1
        ;;
      DELETING)
        pause
        continue
        ;;
    esac
    wait_active && return
    say "$name is $STATE ($try of $tries); why: $(why_failed)"
    pause
  done
  return 1
}

# Sets RUNNING and ENDED (numbers of workers), CODE_SEEN (an exit code: that of a failure,
# else 75 or 134, else 0) and LOST (workers that know of no run). Returns 1 if one does not
# answer.
look() {
  local report line state
  RUNNING=0 ENDED=0 CODE_SEEN=0 LOST=0
  if [ "$dry_run" = 1 ]; then
    on_workers "$WORKER status"
    ENDED=1
    return
  fi
  report=$(on_workers "$WORKER status" 2>"$SCRATCH/error") || return 1
  while IFS= read -r line; do
    case $line in epa_worker\ *) ;; *) continue ;; esac
    state=${line##* }
    case $state in
      running) RUNNING=$((RUNNING + 1)) ;;
      none | killed) LOST=$((LOST + 1)) ;;
      *)
        ENDED=$((ENDED + 1))
        if [ "$state" != 0 ] && { [ "$CODE_SEEN" = 0 ] || goes_on "$CODE_SEEN"; }; then
          CODE_SEEN=$state # a failure counts for more than what it did to the others
        fi
        ;;
    esac
  done <<<"$report"
  [ $((RUNNING + ENDED + LOST)) -gt 0 ]
}

# Sets OUTCOME to 'preempted' or the exit code of the run.
watch_job() {
  local silent=0 uneven=0
  while :; do
    if look; then
      silent=0
      if [ "$RUNNING" = 0 ]; then
        settle
        return
      fi
      uneven=$((ENDED + LOST > 0 ? uneven + 1 : 0))
      if [ "$uneven" -gt "$grace" ]; then
        say "$RUNNING workers run on though others have ended; stopped"
        on_workers "$WORKER stop" || say 'some workers could not be told to stop'
        if [ "$CODE_SEEN" = 0 ]; then LOST=1; fi
        settle
        return
      fi
    else
      silent=$((silent + 1))
      say "not every worker answers ($silent of $tries)"
    fi
    find_state ACTIVE
    if [ "$STATE" != ACTIVE ]; then
      OUTCOME=preempted
      return
    fi
    [ "$silent" -le "$tries" ] || die "$name is ACTIVE but its workers do not answer"
    pause
  done
}

# The outcome of a run that has ended everywhere. A slice on its way out makes the other
# workers fail in ways of their own, so its state counts for more than their codes.
settle() {
  OUTCOME=$CODE_SEEN
  if [ "$LOST" -gt 0 ] || goes_on "$CODE_SEEN"; then OUTCOME=preempted; fi
  [ "$OUTCOME" != 0 ] || return 0
  pause
  find_state ACTIVE
  if [ "$STATE" != ACTIVE ]; then OUTCOME=preempted; fi
}

# Whether a run goes on there already.
joins() {
  [ "$restart" = 0 ] && [ "$dry_run" = 0 ] || return 1
  find_state NONE
  [ "$STATE" = ACTIVE ] && look && [ "$RUNNING" -gt 0 ]
}

parse 'name zone project type capacity slices runtime valid-until service-account network
 subnetwork wait-minutes poll tries retries grace restart' "$@"
check_resource
check_creation
whole retries grace
has_command
case " ${COMMAND[*]} " in
  *workdir=gs://*) ;;
  *) say 'no workdir=gs://... in the command: what it saves is lost with the slice' ;;
esac
require gcloud git
make_scratch
warn_if_changed

for ((preemptions = 0; preemptions <= retries; preemptions++)); do
  if [ "$preemptions" = 0 ] && joins; then
    say 'joined the run that goes on there'
  else
    have_slice || die "$name cannot be had"
    set_up_workers || die "not installed on every worker of $name"
    if [ "$restart" = 1 ]; then on_workers "$WORKER stop"; fi
    start_job || die "not started on every worker of $name"
  fi
  watch_job
  case $OUTCOME in
    0)
      [ "$dry_run" = 1 ] || say 'finished'
      exit 0
      ;;
    preempted) say "preempted ($preemptions times before)" ;;
    *)
      say "the run failed with $OUTCOME; its log: watch.sh --name=$name --zone=$zone"
      exit "$OUTCOME"
      ;;
  esac
done
say "preempted more than $retries times; run this again to go on"
exit "$PREEMPTED"
