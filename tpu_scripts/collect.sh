#!/usr/bin/env bash
# Copies the results of a run here: its folder in the bucket, and the logs of the workers.
#
#   collect.sh --workdir=gs://BUCKET/runs/first --out=runs/first [--checkpoints]
#              [--workers=4 --name=NAME --zone=ZONE] [--project=PROJECT] [--dry-run]
#
#   --checkpoints   also copy checkpoints/, which are large
#   --workers=4     also copy the logs of so many workers of the slice, to OUT/worker-N.log
#
# What is there already is not copied again, nothing is deleted.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse 'workdir out checkpoints name zone project workers' "$@"
need workdir out
check_bucket "$workdir"
whole workers
if [ "$workers" -gt 0 ]; then check_resource; fi
require gcloud

args=(storage rsync "${workdir%/}" "$out" --recursive)
if [ "$checkpoints" = 0 ]; then args+=('--exclude=^checkpoints/.*'); fi
if [ -n "$project" ]; then args+=(--project="$project"); fi
run mkdir -p "$out"
run gcloud "${args[@]}"
for ((worker = 0; worker < workers; worker++)); do
  tpus scp "$name:epa_job/log" "$out/worker-$worker.log" --node=0 --worker="$worker" ||
    die "worker $worker of $name has no log, or cannot be reached"
done
