# shellcheck shell=bash
# What the scripts of this folder share: options, printing of commands, queued resources
# and the workers of a slice. Sourced, never run. Runs with bash 3.2 too, which Macs have.
# shellcheck disable=SC2034 # a script reads the options that are its own

PROGRAM=${0##*/}
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PREEMPTED=75 # the exit code by which a run asks to be run again (epa_jax/interrupt.py)
PEER_LOST=134 # that of a process which JAX aborts because another one is gone

# Whether a run that left with code $1 goes on when it is run again.
goes_on() { [ "$1" = "$PREEMPTED" ] || [ "$1" = "$PEER_LOST" ]; }

# Options by name, with - as _; each can be given as --name=value or --name value.
name=${EPA_NAME:-}
zone=${EPA_ZONE:-}
project=${EPA_PROJECT:-}
type=${EPA_TYPE:-}
capacity=${EPA_CAPACITY:-on-demand}
runtime=''
slices=1
network=''
subnetwork=''
service_account=''
valid_until=''
poll=30
wait_minutes=1440
tries=5
retries=20
grace=10
worker=0
workers=0
lines=50
workdir=''
out=''
cluster=${EPA_CLUSTER:-}
workload=''
base_image='python:3.13'
reservation=''
coordinator=''
processes=1
process=0
cuda=13
# Switches.
dry_run=0
checkpoints=0
follow=0
restart=0
SWITCHES=' checkpoints follow restart '

COMMAND=() # what follows --

say() { printf '%s: %s\n' "$PROGRAM" "$*" >&2; }

die() {
  say "$*"
  exit 1
}

# A mistake on the command line: exit code 2.
misused() {
  say "$*; see $PROGRAM --help"
  exit 2
}

# The comment at the head of the script.
usage() {
  sed -n '2,/^$/{/^$/q;s/^# \{0,1\}//;p;}' "$0"
  exit 0
}

# parse 'NAMES' "$@": sets the options named in NAMES, --dry-run, and COMMAND from what
# follows --.
parse() {
  local allowed=" ${1//$'\n'/} " key value
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) usage ;;
      --dry-run) dry_run=1 ;;
      --)
        shift
        COMMAND=("$@")
        break
        ;;
      --*)
        key=${1#--}
        key=${key%%=*}
        value=${key//-/_}
        case $allowed in *" $key "*) ;; *) misused "--$key: no such option" ;; esac
        key=$value
        case $SWITCHES in
          *" $key "*)
            [ "$1" = "${1%%=*}" ] || misused "$1: takes no value"
            value=1
            ;;
          *)
            if [ "$1" != "${1#*=}" ]; then
              value=${1#*=}
            else
              [ $# -gt 1 ] || misused "$1: needs a value"
              value=$2
              shift
            fi
            [ -n "$value" ] || misused "--${key//_/-}: empty"
            ;;
        esac
        printf -v "$key" %s "$value"
        ;;
      *) misused "$1: not an option; a command follows --" ;;
    esac
    shift
  done
}

# need NAMES...: these options must have a value.
need() {
  local key
  for key in "$@"; do
    [ -n "${!key}" ] || misused "--${key//_/-} is missing"
  done
}

# whole NAMES...: these options must be whole numbers.
whole() {
  local key
  for key in "$@"; do
    case ${!key} in
      '' | *[!0-9]*) misused "--${key//_/-}=${!key}: expected a whole number" ;;
    esac
  done
}

# Resources and workloads share the rule of host names.
check_name() {
  [[ $1 =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    misused "$1: expected lower-case letters, digits and dashes, at most 40, a letter first"
}

check_bucket() {
  case $1 in
    gs://?*/?*) ;;
    *) misused "$1: expected a folder in a bucket, such as gs://my-bucket/runs/first" ;;
  esac
}

has_command() {
  [ ${#COMMAND[@]} -gt 0 ] ||
    misused 'no command; put it after --, such as -- python -m epa_jax.train --config=...'
}

# Prints words so that a shell reads the same words back.
quote() {
  local word line=''
  for word in "$@"; do
    if ! [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Prints a command and, unless this is a dry run, runs it.
run() {
  if [ "$dry_run" = 1 ]; then
    quote "$@"
  else
    printf '+ %s\n' "$(quote "$@")" >&2
    "$@"
  fi
}

pause() { [ "$dry_run" = 1 ] || sleep "$poll"; }

require() {
  local tool
  [ "$dry_run" = 1 ] && return
  for tool in "$@"; do
    command -v "$tool" >/dev/null ||
      die "$tool is not installed; ${TOOLS_FROM:-see docs/tpu.md}"
  done
}

make_scratch() {
  if [ "$dry_run" = 1 ]; then
    SCRATCH=/tmp
    return
  fi
  SCRATCH=$(mktemp -d)
  trap 'rm -rf "$SCRATCH"' EXIT
}

# ---- queued resources -------------------------------------------------------------------

where() {
  WHERE=(--zone="$zone")
  if [ -n "$project" ]; then WHERE+=(--project="$project"); fi
}

tpus() { run gcloud compute tpus queued-resources "$@" "${WHERE[@]}"; }

# v5e-16 as plans call it, v5litepod-16 as Cloud does.
accelerator() { printf '%s\n' "${type/#v5e-/v5litepod-}"; }

# The image of the virtual machines, by generation.
image() {
  case $(accelerator) in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) misused "--type=$type: expected such as v5e-16, v5p-8, v6e-8 or v4-32" ;;
  esac
}

check_resource() {
  need name zone
  check_name "$name"
  whole poll tries
  where
}

check_creation() {
  need type
  whole slices wait_minutes
  [ "$slices" -ge 1 ] || misused '--slices=0: expected 1 or more'
  case $capacity in
    spot | reserved | on-demand) ;;
    *) misused "--capacity=$capacity: expected spot, reserved or on-demand" ;;
  esac
  [ -n "$runtime" ] || runtime=$(image) || exit $?
}

# Asks for the slice; it is there when wait_active returns.
create_resource() {
  local args
  args=(create "$name" --accelerator-type="$(accelerator)" --runtime-version="$runtime")
  if [ "$slices" -gt 1 ]; then
    args+=(--node-count="$slices" --node-prefix="$name")
  else
    args+=(--node-id="$name")
  fi
  case $capacity in
    spot) args+=(--spot) ;;
    reserved) args+=(--reserved) ;;
  esac
  if [ -n "$valid_until" ]; then args+=(--valid-until-duration="$valid_until"); fi
  if [ -n "$network" ]; then args+=(--network="$network"); fi
  if [ -n "$subnetwork" ]; then args+=(--subnetwork="$subnetwork"); fi
  if [ -n "$service_account" ]; then args+=(--service-account="$service_account"); fi
  tpus "${args[@]}"
}

# Sets STATE to what Cloud says of the resource, or NONE. In a dry run it is $1.
find_state() {
  local try error
  if [ "$dry_run" = 1 ]; then
    tpus describe "$name" '--format=value(state.state)'
    STATE=$1
    return
  fi
  for ((try = 1; try <= tries; try++)); do
    if STATE=$(gcloud compute tpus queued-resources describe "$name" \
      '--format=value(state.state)' "${WHERE[@]}" 2>"$SCRATCH/error"); then
      [ -n "$STATE" ] || STATE=UNKNOWN
      return
    fi
    error=$(cat "$SCRATCH/error")
    case $error in
      *NOT_FOUND* | *'not found'*)
        STATE=NONE
        return
        ;;
      *PERMISSION_DENIED* | *UNAUTHENTICATED* | *'gcloud auth login'*) break ;;
    esac
    say "cannot ask for the state of $name ($try of $tries): ${error##*$'\n'}"
    pause
  done
  die "cannot ask for the state of $name: $error"
}

# Waits until the slice can be used; returns 1 when it never will be.
wait_active() {
  local began=$SECONDS last=''
  while :; do
    find_state ACTIVE
    [ "$dry_run" = 0 ] || return 0
    if [ "$STATE" != "$last" ]; then say "$name is $STATE"; fi
    last=$STATE
    case $STATE in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | NONE) return 1 ;;
    esac
    if [ $((SECONDS - began)) -ge $((wait_minutes * 60)) ]; then
      die "$name is still $STATE after $wait_minutes minutes; run this again to wait on"
    fi
    pause
  done
}

why_failed() {
  quote gcloud compute tpus queued-resources describe "$name" "${WHERE[@]}"
}

delete_resource() { tpus delete "$name" --force --quiet; }

# ---- workers of a slice -----------------------------------------------------------------

CODE=epa_jax # folder on every worker, under its home
WORKER="bash $CODE/tpu_scripts/worker.sh"

on_workers() { tpus ssh "$name" --node=all --worker=all --command="$1"; }

# on_workers, again when a worker cannot be reached: the command must bear being repeated.
persist_on_workers() {
  local try
  for ((try = 1; try <= tries; try++)); do
    on_workers "$1" && return
    say "not on every worker ($try of $tries)"
    [ "$try" = "$tries" ] || pause
  done
  return 1
}

# Copies the commit that is checked out here to every worker and installs it there.
set_up_workers() {
  local try
  run git -C "$REPO" bundle create --quiet "$SCRATCH/epa_jax.bundle" HEAD ||
    die "cannot bundle $REPO; it must be a git repository"
  for ((try = 1; try <= tries; try++)); do
    tpus scp "$SCRATCH/epa_jax.bundle" "$name:epa_jax.bundle" \
      --node=all --worker=all && break
    [ "$try" -lt "$tries" ] || return 1
    say "the code is not on every worker ($try of $tries)"
    pause
  done
  persist_on_workers "git init -q $CODE && git -C $CODE fetch -q ../epa_jax.bundle HEAD &&\
 git -C $CODE checkout -q -f FETCH_HEAD && $WORKER install"
}

warn_if_changed() {
  if [ -n "$(git -C "$REPO" status --porcelain --untracked-files=no 2>/dev/null)" ]; then
    say 'changes that are not committed are not copied'
  fi
}

# Starts COMMAND on every worker; where one cannot be reached, on none.
start_job() {
  local id
  id=$(date -u +%Y%m%dT%H%M%SZ)
  [ "$dry_run" = 0 ] || id=TIME
  if ! persist_on_workers "$WORKER start $id $(quote "${COMMAND[@]}")"; then
    on_workers "$WORKER stop" || say 'some workers could not be told to stop'
    return 1
  fi
}
