#!/usr/bin/env bash
# scripts/slurm under a real Slurm of this one machine (Debian: apt-get install slurm-wlm munge; started here as root, on ports of
# its own): a job is told to leave, saves, requeues itself, and ends like the undisturbed run. Exit code 77: not possible here.
# Usage: test/slurm_test.sh OPENMOE SHARDS
set -euo pipefail
openmoe=$1 shards=$2
cd "$(dirname "$0")/.."
skip() { echo "skipped: $1"; exit 77; }
[ "$(id -u)" = 0 ] || skip "starting Slurm needs root"
for program in slurmctld slurmd munged sbatch; do
  command -v "$program" >/dev/null || skip "no $program; apt-get install slurm-wlm munge"
done


folder=$(mktemp -d /tmp/openmoe-slurm-XXXXXX)
host=$(hostname -s)
finish() {
  local pids=()
  for name in slurmd slurmctld munged; do
    [ ! -f "$folder/$name.pid" ] || pids+=("$(cat "$folder/$name.pid")")
  done
  kill "${pids[@]}" 2>/dev/null || true
  for _ in $(seq 100); do # they write their state as they end
    kill -0 "${pids[@]}" 2>/dev/null || break
    sleep 0.1
  done
  rm -rf "$folder"
}
trap finish EXIT
export SLURM_CONF=$folder/slurm.conf
dd if=/dev/urandom of="$folder/key" bs=1 count=1024 status=none
chmod 400 "$folder/key"
chmod 755 "$folder"
cat > "$SLURM_CONF" <<CONF
ClusterName=openmoe
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$folder/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPort=$((20000 + $$ % 10000))
SlurmdPort=$((30000 + $$ % 10000))
NodeName=$host NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes=$host Default=YES State=UP
CONF
mkdir "$folder/state" "$folder/spool"
munged --force --key-file="$folder/key" --socket="$folder/munge" --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
  --seed-file="$folder/seed" 2>/dev/null
slurmctld -c
slurmd
for _ in $(seq 100); do
  sinfo -h -o %t 2>/dev/null | grep -q idle && break
  sleep 0.2
done
sinfo -h -o %t | grep -q idle || { cat "$folder"/slurm*.log; echo "Slurm did not start"; exit 1; }

settings=(--ep 2 --set run.num_steps=80)
OMP_NUM_THREADS=1 scripts/mpirun.sh -np 2 "$openmoe" train test/recipes/tiny-released.json --data "$shards" --out "$folder/straight" \
  "${settings[@]}" >/dev/null

export OPENMOE_BINARY=$openmoe OPENMOE_REQUEUE_PAUSE=5 OPENMOE_DATA=$shards OPENMOE_RUN=$folder/run OPENMOE_RECIPE=test/recipes/tiny-released.json
for file in scripts/slurm/*.sbatch; do bash -n "$file"; done
# The resources are this machine's; everything else is the file's.
job=$(sbatch --parsable --nodes=1 --ntasks=2 --cpus-per-task=1 --mem-per-cpu=0 --time=60 --output="$folder/job.log" \
  scripts/slurm/base.sbatch "${settings[@]}")
rows() { if [ -f "$folder/run/metrics.jsonl" ]; then wc -l < "$folder/run/metrics.jsonl"; else echo 0; fi; }
wait_for() { # COMMAND...: until it succeeds
  for _ in $(seq 3000); do
    "$@" && return
    sleep 0.1
  done
  cat "$folder/job.log" "$folder/slurmctld.log"
  echo "waited in vain for: $*"
  exit 1
}
more_rows() { [ "$(rows)" -ge "$1" ]; }
requeued() { scontrol show job "$job" | grep -q 'Restarts=1'; }
state_is() { scontrol show job "$job" | grep -q "JobState=$1"; }
wait_for more_rows 5
scancel --batch --signal=USR1 "$job"
wait_for requeued
grep -q "stopped by SIGUSR1, exit code 85" "$folder/job.log"
at=$(rows)
[ "$at" -lt 80 ]
[ -f "$folder/run/checkpoints/step-$(printf %08d "$at")/manifest.json" ]
# A requeued job waits two minutes by itself. A few seconds are needed: slurmd takes a new attempt of the same second for the old one.
wait_for state_is PENDING
is_idle() { sinfo -h -o %t | grep -qx idle; }
wait_for is_idle
sleep 4
scontrol update JobId="$job" StartTime=now
wait_for state_is COMPLETED
without_times() { sed -E 's/"(tokens_per_s|step_seconds)":[^,]*,//g' "$1/metrics.jsonl"; }
cmp <(without_times "$folder/straight") <(without_times "$folder/run") || { cat "$folder/job.log"; scontrol show job "$job"; exit 1; }
echo "slurm: stopped at step $at, requeued, and ended as if nothing had happened"
