#!/usr/bin/env bash
# The part that the sbatch files of this folder share: one attempt at a run, and its way back into the queue.
# Usage, from a batch script: scripts/slurm/train.sh RECIPE [option of openmoe train...]
#   OPENMOE_DATA  folder of token shards       OPENMOE_RUN  run folder, on a file system that all nodes share
#   OPENMOE_MPI   how srun starts MPI (srun --mpi=list); default pmix
#   OPENMOE_MAX_RESTARTS  give up after so many; default 100      OPENMOE_RECIPE  instead of the recipe that a batch file names
#   OPENMOE_BINARY  default build/release/openmoe      OPENMOE_REQUEUE_PAUSE  seconds between the end of a step and its requeue; default 10
# Each rank gets Slurm's signals from srun, saves with the others, and the step ends with exit code 85: then, and only then, the job
# is queued again. After a node failure Slurm itself queues it again (--requeue). A run that is done or in error stays out.
set -euo pipefail
: "${OPENMOE_DATA:?set it to the folder of token shards}" "${OPENMOE_RUN:?set it to the run folder, on a shared file system}"
[ $# -ge 1 ] || { echo "train.sh: name a recipe" >&2; exit 2; }
recipe=$1
shift
cd "$(dirname "$0")/../.."

# --signal=B:USR1@... reaches the batch script alone, which runs this with exec; srun passes it to the ranks.
step=
forward() { [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null || true; }
trap forward USR1 TERM

# Rank 0 leaves a mark that it started: srun returns 0 even for a step that could not be launched (Slurm 22.05).
mkdir -p "$OPENMOE_RUN"
export OPENMOE_MARK=$OPENMOE_RUN/.started-$SLURM_JOB_ID
rm -f "$OPENMOE_MARK"
trap 'rm -f "$OPENMOE_MARK"' EXIT
# shellcheck disable=SC2016 # for the shell of the rank
srun --mpi="${OPENMOE_MPI:-pmix}" --kill-on-bad-exit=1 \
  bash -c '[ "$SLURM_PROCID" != 0 ] || echo started > "$OPENMOE_MARK"; exec "$@"' rank \
  "${OPENMOE_BINARY:-build/release/openmoe}" train "$recipe" --data "$OPENMOE_DATA" --out "$OPENMOE_RUN" --resume "$@" &
step=$!
# A trapped signal ends `wait` early, with more than 128: wait again for the step itself.
while :; do
  code=0
  wait "$step" || code=$?
  kill -0 "$step" 2>/dev/null || break
done

if [ "$code" = 0 ] && [ ! -s "$OPENMOE_MARK" ]; then
  echo "train.sh: the step did not start; what Slurm says of it stands above and in slurmd's log" >&2
  exit 1
fi
if [ "$code" = 85 ]; then
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "${OPENMOE_MAX_RESTARTS:-100}" ]; then
    echo "train.sh: saved, but restarted ${SLURM_RESTART_COUNT} times already: raise OPENMOE_MAX_RESTARTS and sbatch again" >&2
    exit 85
  fi
  echo "train.sh: saved; back into the queue"
  rm -f "$OPENMOE_MARK"
  # The daemons of a step clean up after srun has returned; an attempt that starts on the same nodes before finds their sockets in use.
  sleep "${OPENMOE_REQUEUE_PAUSE:-10}"
  scontrol requeue "$SLURM_JOB_ID"
  # Slurm ends this attempt now. Leaving by itself, the script could be taken for the next attempt's end.
  exec sleep 300
fi
exit "$code"
