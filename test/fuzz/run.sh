#!/usr/bin/env bash
# Fuzzes the readers of weight files under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   test/fuzz/run.sh [SECONDS PER TARGET] [BUILD FOLDER]      default: 60, build/fuzz
#
# Needs clang with libFuzzer (Debian and Ubuntu: clang libclang-rt-14-dev or the rt package of your clang). A finding is
# left in the build folder, and the script fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
build=${2:-build/fuzz}
mkdir -p "$build"

sources="data/input_file.cpp data/output_file.cpp data/weight_file.cpp data/safetensors.cpp data/torch_pickle.cpp
         data/torch_file.cpp"
fuzz() {  # target, folder with seeds, longest input
  local target=$1 seeds=$2 longest=$3
  # shellcheck disable=SC2086
  clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -I. \
    "test/fuzz/${target}_fuzz.cpp" $sources -lzip -o "$build/$target"
  mkdir -p "$build/$target-corpus"
  "$build/$target" -max_total_time="$seconds" -max_len="$longest" -rss_limit_mb=1024 -timeout=20 -print_final_stats=1 \
    -artifact_prefix="$build/$target-" "$build/$target-corpus" $seeds
}

# The pickles by themselves are the seeds of their own target.
mkdir -p "$build/pickles"
for archive in test/fuzz/corpus/torch/*.bin; do
  unzip -p "$archive" '*/data.pkl' > "$build/pickles/$(basename "$archive" .bin).pkl" 2>/dev/null || true
done

fuzz weight_file "test/fuzz/corpus/safetensors test/fuzz/corpus/torch" 4096
fuzz torch_pickle "$build/pickles" 2048
