#!/usr/bin/env bash
# A run as an XPK workload on a GKE cluster with TPU slices (https://github.com/AI-Hypercomputer/xpk; pip install xpk).
#
#   CLUSTER=c ZONE=us-west4-a PROJECT=p TPU_TYPE=v5litepod-16 IMAGE=gcr.io/p/ropd:1 \
#       launch/xpk.sh my-run --config qwen3_4b_math --workdir gs://bucket/runs/a
#
# GKE sends SIGTERM and waits for the grace period; the run saves, ends with 130, and is started again. XPK restarts on
# 127 to 255; 1 (a crash) and 5 (another host is lost) are added. 2, 3, 4 and 6 need a person and are not restarted.
# IMAGE is made from launch/Dockerfile. Keys come from a Kubernetes secret of the node pool's service account, or from
# ROPD_ENV_FILE, a file with NAME=VALUE lines that only you can read.
set -eu

name=${1:?usage: CLUSTER= ZONE= PROJECT= TPU_TYPE= IMAGE= xpk.sh NAME --config FILE --workdir gs://BUCKET/DIR ...}
shift
case " $* " in
  *' --workdir gs://'* | *' --workdir=gs://'*) ;;
  *) echo 'xpk: --workdir must be gs://BUCKET/DIR; the disks of a pod go with it' >&2 && exit 2 ;;
esac
secrets=()
if [ -n "${ROPD_ENV_FILE:-}" ]; then
  secrets=(--env-file "$ROPD_ENV_FILE")
fi
exec xpk workload create \
  --workload "$name" \
  --cluster "${CLUSTER:?}" --project "${PROJECT:?}" --zone "${ZONE:?}" \
  --tpu-type "${TPU_TYPE:?}" --num-slices 1 \
  --docker-image "${IMAGE:?}" \
  --max-restarts "${ROPD_RESTARTS:-100}" \
  --restart-on-exit-codes 1,5 \
  --termination-grace-period-seconds 60 \
  "${secrets[@]}" \
  --command "exec ropd train$(printf ' %q' "$@")"
