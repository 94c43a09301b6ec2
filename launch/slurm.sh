#!/usr/bin/env bash
# A run as a Slurm job that requeues itself until it is done.
#
#   sbatch --partition gpu --gpus-per-task 8 --time 8:00:00 launch/slurm.sh --config my.py --workdir runs/a
#
# Slurm sends SIGTERM to the tasks two minutes before the time limit, and when it preempts the job; the run saves a
# checkpoint and ends with 130. The script then puts the job back into the queue, and it resumes. Codes 2, 3, 4 and 6
# need a person (docs/launch.md) and end the job. For several nodes add --nodes N; the tasks find each other.
#SBATCH --job-name=ropd
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ropd-%j.log
set -u

restarts=${ROPD_RESTARTS:-100}
hosts=(--coordinator off)
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
  hosts=(--coordinator auto)
fi

# Without a trap the batch shell itself would die of a SIGTERM (scancel --batch, some preemption modes).
trap 'echo "slurm.sh: SIGTERM; waiting for the checkpoint" >&2' TERM
srun --kill-on-bad-exit=1 ropd train "$@" "${hosts[@]}" &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do
  wait "$step"
  code=$?
done

case $code in
  0 | 2 | 3 | 4 | 6)
    exit "$code"
    ;;
esac
if [ "${SLURM_RESTART_COUNT:-0}" -ge "$restarts" ]; then
  echo "slurm.sh: exit code $code after $restarts restarts; giving up" >&2
  exit "$code"
fi
echo "slurm.sh: exit code $code; requeueing job $SLURM_JOB_ID" >&2
exec scontrol requeue "$SLURM_JOB_ID"
