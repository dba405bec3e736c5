#!/usr/bin/env bash
# Generation on the CPU from random weights of Base size, beside what the memory gives when it is only read.
# Usage: scripts/bench/decode.sh [RECIPE [bf16|f32 [tokens [prompt tokens]]]]
set -euo pipefail
cd "$(dirname "$0")/../.."
scripts/build.sh release openmoe_bench_decode
exec build/release/test/openmoe_bench_decode "${1:-recipes/released/openmoe-base.json}" "${@:2}"
