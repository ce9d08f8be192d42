#!/usr/bin/env bash
# The same on GKE, through xpk (pip install xpk; it needs kubectl and docker).
#
#   gke.sh create --cluster=C --type=v5e-16 --zone=ZONE [--capacity=...] [--slices=1]
#                              a cluster with the slice's nodes
#   gke.sh launch --cluster=C --workload=W --type=v5e-16 --zone=ZONE -- COMMAND...
#                              the command in every pod; run again after a preemption
#   gke.sh resume ...          as launch, once --retries are used up: deletes W first
#   gke.sh status --cluster=C --workload=W --zone=ZONE
#   gke.sh watch --cluster=C --workload=W --zone=ZONE [--lines=50] [--follow]
#   gke.sh wait --cluster=C --workload=W --zone=ZONE
#                              returns when W has ended, with 0 if it did well
#   gke.sh collect --workdir=gs://BUCKET/runs/first --out=runs/first [--checkpoints]
#   gke.sh stop --cluster=C --workload=W --zone=ZONE
#   gke.sh teardown --cluster=C --zone=ZONE
#                              deletes the cluster; nothing costs money after it
#
#   --project, --zone, --type, --capacity, --cluster
#                          also from EPA_PROJECT, EPA_ZONE, EPA_TYPE, EPA_CAPACITY,
#                          EPA_CLUSTER
#   --capacity=on-demand   or spot, or reserved with --reservation=NAME
#   --base-image=python:3.13
#                          xpk adds this repository to it; the pod installs it at its start
#   --retries=20           restarts of the workload after a preemption
#   --dry-run              print the commands, run none
#
# Kubernetes starts the workload again when the command leaves with 75, or a pod is lost.
# Exit codes: 0 done, 2 misused, else that of the command that failed.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

GRACE_SECONDS=300 # for the last save; Cloud gives a spot machine less
TOOLS_FROM='pip install xpk; see docs/tpu.md'

xpk_run() {
  local args=("$@" --cluster="$cluster" --zone="$zone")
  if [ -n "$project" ]; then args+=(--project="$project"); fi
  run xpk "${args[@]}"
}

check_cluster() {
  need cluster zone
  check_name "$cluster"
}

check_workload() {
  check_cluster
  need workload
  check_name "$workload"
}

bought() {
  case $capacity in
    spot | on-demand) BOUGHT=(--"$capacity") ;;
    reserved)
      need reservation
      BOUGHT=(--reservation="$reservation")
      ;;
    *) misused "--capacity=$capacity: expected spot, reserved or on-demand" ;;
  esac
}

create() {
  parse 'cluster zone project type capacity reservation slices' "$@"
  check_cluster
  need type
  image >/dev/null || exit $?
  whole slices
  bought
  require xpk
  xpk_run cluster create --tpu-type="$(accelerator)" --num-slices="$slices" "${BOUGHT[@]}"
}

check_launch() {
  parse 'cluster zone project workload type slices retries base-image' "$@"
  check_workload
  need type
  image >/dev/null || exit $?
  whole slices retries
  has_command
  require xpk
}

launch() {
  local install="pip install -q -c constraints.txt -e '.[tpu]'"
  xpk_run workload create --workload="$workload" --tpu-type="$(accelerator)" \
    --num-slices="$slices" --base-docker-image="$base_image" --script-dir="$REPO" \
    --max-restarts="$retries" --restart-on-exit-codes="$PREEMPTED" \
    --termination-grace-period-seconds="$GRACE_SECONDS" \
    --command="$install && exec $(quote "${COMMAND[@]}")"
}

stop() { xpk_run workload delete --workload="$workload"; }

# The logs of pods come from kubectl, which must know the cluster; xpk makes regional ones.
watch() {
  local place=(--location="${zone%-*}") logs
  if [ -n "$project" ]; then place+=(--project="$project"); fi
  run gcloud container clusters get-credentials "$cluster" "${place[@]}"
  logs=(logs "--selector=jobset.sigs.k8s.io/jobset-name=$workload" --prefix
    --tail="$lines" --max-log-requests=256)
  if [ "$follow" = 1 ]; then logs+=(--follow); fi
  run kubectl "${logs[@]}"
}

for_workload() {
  parse "cluster zone project workload $1" "${@:2}"
  check_workload
}

action=${1:-}
[ $# -eq 0 ] || shift
case $action in
  create) create "$@" ;;
  launch)
    check_launch "$@"
    launch
    ;;
  resume)
    check_launch "$@"
    stop || say "$workload could not be deleted; perhaps it is not there"
    launch
    ;;
  status)
    for_workload '' "$@"
    require xpk
    xpk_run workload list --filter-by-job="$workload"
    ;;
  watch)
    for_workload 'lines follow' "$@"
    whole lines
    require gcloud kubectl
    watch
    ;;
  wait)
    for_workload '' "$@"
    require xpk
    xpk_run workload list --wait-for-job-completion="$workload"
    ;;
  collect) exec bash "$REPO/tpu_scripts/collect.sh" "$@" ;;
  stop)
    for_workload '' "$@"
    require xpk
    stop
    ;;
  teardown)
    parse 'cluster zone project' "$@"
    check_cluster
    require xpk
    xpk_run cluster delete
    ;;
  --help | -h) usage ;;
  *) misused "${action:-nothing}: expected create, launch, resume, status, watch, wait, \
collect, stop or teardown" ;;
esac
