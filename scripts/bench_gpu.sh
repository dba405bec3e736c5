#!/usr/bin/env bash
# What the GPUs of this machine (or job) make of openmoe, as one JSON file: the machine, tokens/s and share of peak of training
# steps of each recipe, with the routers' own and with even routing, every kind of op beside its roofline, and the exchange between
# the ranks by size, as nccl-tests defines it. Random tokens; no data needed.
# Usage: scripts/bench_gpu.sh [-n RANKS] [-o FILE] [-b OPENMOE] [-l LAUNCHER] [RECIPE...] [-- OPTIONS of openmoe bench-device]
#   -n  ranks, one per GPU (default: the GPUs that nvidia-smi lists)
#   -o  where the JSON goes (default: bench_gpu.json)
#   -b  the executable (default: build/release/openmoe, else build/cuda/openmoe)
#   -l  what starts the ranks (default: scripts/mpirun.sh -np RANKS), for instance 'srun -n 16'
# Without a recipe: recipes/openmoe-base.json with 8 rows on each GPU.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

usage() {
  sed -n '/^# Usage/,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" >&2
  exit 2
}

ranks= out=bench_gpu.json openmoe= launcher=
while getopts n:o:b:l:h option; do
  case $option in
    n) ranks=$OPTARG ;;
    o) out=$OPTARG ;;
    b) openmoe=$OPTARG ;;
    l) launcher=$OPTARG ;;
    *) usage ;;
  esac
done
# getopts swallows a -- that comes before any recipe.
if [ "$OPTIND" -gt 1 ]; then
  before=$((OPTIND - 1))
  if [ "${!before}" = -- ]; then OPTIND=$before; fi
fi
shift $((OPTIND - 1))
recipes=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    -*)
      echo "bench_gpu: '$1': options of this script stand before the recipes, those of openmoe bench-device after --" >&2
      usage
      ;;
  esac
  [ -f "$1" ] || { echo "bench_gpu: no recipe '$1'" >&2; exit 2; }
  recipes+=("$1")
  shift
done
[ $# -gt 0 ] && shift
options=("$@")
if [ ${#recipes[@]} -eq 0 ]; then
  recipes=("$root/recipes/openmoe-base.json")
  options=(--rows 8 "${options[@]}")
fi

if [ -z "$openmoe" ]; then
  for openmoe in "$root/build/release/openmoe" "$root/build/cuda/openmoe"; do
    [ -x "$openmoe" ] && break
  done
fi
[ -x "$openmoe" ] || { echo "bench_gpu: '$openmoe' is not there: build openmoe (README), or name it with -b" >&2; exit 2; }
command -v python3 >/dev/null || { echo "bench_gpu: python3 is needed to put the parts of the report together" >&2; exit 2; }
if [ -z "$ranks" ] && [ -z "$launcher" ]; then
  ranks=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
  [ "$ranks" -gt 0 ] || { echo "bench_gpu: nvidia-smi lists no GPU; say with -n how many ranks to start" >&2; exit 2; }
fi
case $ranks in
  *[!0-9]* | 0) echo "bench_gpu: -n '$ranks': allowed: a whole number, 1 or more" >&2; exit 2 ;;
esac
if [ -n "$launcher" ]; then
  read -ra start <<<"$launcher"
else
  start=("$root/scripts/mpirun.sh" -np "$ranks")
fi

parts=$(mktemp -d "$(dirname "$out")/.bench_gpu.XXXXXX")
trap 'rm -rf "$parts"' EXIT
device=(--device cuda)
for option in "${options[@]}"; do
  case $option in --device | --device=*) device=() ;; esac
done
number=0
for recipe in "${recipes[@]}"; do
  echo "bench_gpu: $recipe" >&2
  part=$parts/$number.json
  more=()
  [ $number -gt 0 ] && more=(--exchange-most 0)  # once is enough
  "${start[@]}" "$openmoe" bench-device "$recipe" "${device[@]}" "${options[@]}" "${more[@]}" --out "$part"
  number=$((number + 1))
done
python3 - "$out" "$parts" "$number" <<'PYTHON'
import json
import sys

out, parts, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
reports = [json.load(open(f"{parts}/{i}.json")) for i in range(number)]
whole = reports[0]
whole["command"] = [report["command"] for report in reports]
whole["recipes"] = [recipe for report in reports for recipe in report["recipes"]]
with open(out, "w") as file:
    json.dump(whole, file, indent=2)
    file.write("\n")
PYTHON
echo "bench_gpu: $out" >&2
