#!/usr/bin/env bash
# What runs on a worker of a slice; the other scripts call it over ssh.
#
#   worker.sh install              environment of the code, with JAX for TPUs
#   worker.sh start ID COMMAND...  start it in the background, unless ID has been started
#   worker.sh status               'epa_worker HOST STATE': running, an exit code, killed or
#                                  none
#   worker.sh log LINES [follow]   the end of its log
#   worker.sh stop                 SIGTERM, SIGKILL after EPA_STOP_SECONDS (120)
#
# The run's files are in EPA_JOB, by default ~/epa_job: id, pid, exit_code, log.

set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
JOB=${EPA_JOB:-$HOME/epa_job}

die() {
  printf 'worker.sh on %s: %s\n' "$(hostname)" "$*" >&2
  exit 1
}

# The machines' images have an older Python; uv fetches one that is supported.
install() {
  export PATH="$HOME/.local/bin:$PATH"
  if ! command -v uv >/dev/null; then
    python3 -m pip install -q --user uv ||
      curl -LsSf https://astral.sh/uv/install.sh | sh ||
      die 'uv could not be installed, neither with pip nor with its own installer'
  fi
  cd "$REPO"
  EXTRA=tpu ./setup_env.sh
}

runs() { [ -f "$JOB/pid" ] && kill -0 "-$(cat "$JOB/pid")" 2>/dev/null; }

state() {
  if [ -f "$JOB/exit_code" ]; then
    cat "$JOB/exit_code"
  elif runs; then
    echo running
  elif [ -f "$JOB/pid" ]; then
    echo killed
  else
    echo none
  fi
}

start() {
  local id=$1
  shift
  mkdir -p "$JOB"
  [ "$(cat "$JOB/id" 2>/dev/null)" = "$id" ] && return
  if runs; then die "$(cat "$JOB/id") runs here; stop it first"; fi
  rm -f "$JOB/exit_code" "$JOB/pid"
  printf '%s\n' "== $id: $*" >>"$JOB/log"
  cd "$REPO"
  set -m # a process group of its own
  PATH="$REPO/.venv/bin:$PATH" nohup bash "${BASH_SOURCE[0]}" keep "$@" \
    >>"$JOB/log" 2>&1 </dev/null &
  printf '%s\n' $! >"$JOB/pid"
  printf '%s\n' "$id" >"$JOB/id"
}

# Waits for the command and keeps its exit code; a SIGTERM is the command's to answer.
keep() {
  local code=0
  trap : TERM
  "$@" &
  wait $! || code=$?
  while kill -0 $! 2>/dev/null; do
    code=0
    wait $! || code=$?
  done
  printf '%s\n' "$code" >"$JOB/exit_code.partial"
  mv "$JOB/exit_code.partial" "$JOB/exit_code"
}

stop() {
  local second group
  runs || return 0
  group=$(cat "$JOB/pid")
  kill -TERM "-$group" 2>/dev/null || return 0
  for ((second = 0; second < ${EPA_STOP_SECONDS:-120}; second++)); do
    runs || return 0
    sleep 1
  done
  kill -KILL "-$group" 2>/dev/null || return 0
}

case ${1:-} in
  install) install ;;
  start) start "${@:2}" ;;
  keep) keep "${@:2}" ;;
  status) printf 'epa_worker %s %s\n' "$(hostname)" "$(state)" ;;
  log)
    [ -f "$JOB/log" ] || die "no log at $JOB/log"
    if [ "${3:-}" = follow ]; then exec tail -n "$2" -F "$JOB/log"; fi
    tail -n "$2" "$JOB/log"
    ;;
  stop) stop ;;
  *) die "${1:-nothing}: expected install, start, status, log or stop" ;;
esac
