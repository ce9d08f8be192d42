#!/usr/bin/env bash
# A run on a machine with CUDA GPUs, or on several of them. Run it there.
#
#   cuda.sh setup [--cuda=13] [--dry-run]
#   cuda.sh run [--retries=20] [--poll=30] [--dry-run] -- COMMAND...
#   cuda.sh run --coordinator=HOST:PORT --processes=N --process=I ... -- COMMAND...
#
# setup makes .venv with JAX for CUDA 13 or 12. run runs the command in it, one process
# for all GPUs of the machine, and again --poll seconds after it left with the code of a
# preemption (75) or of a lost process (134), at most --retries times, unless a SIGTERM
# came to this script, which the command gets and after which it ends. With several
# machines start it on each, with process 0 on HOST and a port that the others reach;
# COMMAND needs --distributed, and its workdir must be one that all reach. Exit codes: 2
# misused, else that of the command.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

setup() {
  parse 'cuda' "$@"
  case $cuda in
    12 | 13) ;;
    *) misused "--cuda=$cuda: expected 12 or 13" ;;
  esac
  run env EXTRA="cuda$cuda" "$REPO/setup_env.sh"
}

# Sets CODE to the exit code of the command. A SIGTERM is the command's to answer; TOLD is
# then 1.
run_once() {
  CODE=0 TOLD=0
  "$@" &
  trap 'TOLD=1; kill -TERM $! 2>/dev/null || true' TERM
  wait $! || CODE=$?
  while kill -0 $! 2>/dev/null; do
    CODE=0
    wait $! || CODE=$?
  done
  trap - TERM
}

run_again() {
  local preemptions
  for ((preemptions = 0; ; preemptions++)); do
    run_once "$@"
    if [ "$TOLD" = 1 ] || ! goes_on "$CODE"; then exit "$CODE"; fi
    [ "$preemptions" -lt "$retries" ] || break
    say "preempted ($preemptions times before); again in $poll s"
    pause
  done
  say "preempted more than $retries times; run this again to go on"
  exit "$PREEMPTED"
}

start() {
  local settings=(PATH="$REPO/.venv/bin:$PATH")
  parse 'retries poll coordinator processes process' "$@"
  whole retries poll processes process
  has_command
  if [ -n "$coordinator" ]; then
    case $coordinator in
      ?*:[0-9]*) ;;
      *) misused "--coordinator=$coordinator: expected HOST:PORT" ;;
    esac
    [ "$process" -lt "$processes" ] ||
      misused "--process=$process: expected 0 to --processes less one"
    settings+=(JAX_COORDINATOR_ADDRESS="$coordinator" JAX_NUM_PROCESSES="$processes"
      JAX_PROCESS_ID="$process")
  elif [ "$processes" != 1 ]; then
    misused "--processes=$processes: needs --coordinator=HOST:PORT"
  fi
  cd "$REPO"
  if [ "$dry_run" = 1 ]; then
    settings[0]="PATH=$REPO/.venv/bin:\$PATH"
    run env "${settings[@]}" "${COMMAND[@]}"
    return
  fi
  [ -x .venv/bin/python ] || die 'no .venv; run cuda.sh setup first'
  run_again env "${settings[@]}" "${COMMAND[@]}"
}

action=${1:-}
[ $# -eq 0 ] || shift
case $action in
  setup) setup "$@" ;;
  run) start "$@" ;;
  --help | -h) usage ;;
  *) misused "${action:-nothing}: expected setup or run" ;;
esac
