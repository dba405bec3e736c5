#!/usr/bin/env bash
# Fuzzes the readers of weight files, the readers of text, and `prepare`, under AddressSanitizer and
# UndefinedBehaviorSanitizer.
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

weights="data/input_file.cpp data/output_file.cpp data/weight_file.cpp data/safetensors.cpp data/torch_pickle.cpp
         data/torch_file.cpp"
text="data/byte_source.cpp data/record_reader.cpp data/parse_document.cpp data/chat.cpp data/prepare.cpp data/hash.cpp
      data/tokenizer.cpp data/unigram_encoder.cpp data/shard_writer.cpp data/shard_reader.cpp data/h5_*.cpp"
libraries="hdf5 sentencepiece libxxhash libzstd zlib libcrypto libzip"
compile() {  # target, sources
  # shellcheck disable=SC2046,SC2086
  clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -I. \
    -DOPENMOE_VERSION='"fuzz"' "test/fuzz/$1_fuzz.cpp" $2 $(pkg-config --cflags --libs $libraries) -pthread -o "$build/$1"
}
fuzz() {  # target, folder with seeds, longest input
  mkdir -p "$build/$1-corpus"
  # shellcheck disable=SC2086
  "$build/$1" -max_total_time="$seconds" -max_len="$3" -rss_limit_mb=2048 -timeout=20 -print_final_stats=1 \
    -artifact_prefix="$build/$1-" "$build/$1-corpus" $2
}

# The pickles by themselves are the seeds of their own target.
mkdir -p "$build/pickles"
for archive in test/fuzz/corpus/torch/*.bin; do
  unzip -p "$archive" '*/data.pkl' > "$build/pickles/$(basename "$archive" .bin).pkl" 2>/dev/null || true
done

compile weight_file "$weights"
compile torch_pickle "$weights"
compile prepare "$text"
fuzz weight_file "test/fuzz/corpus/safetensors test/fuzz/corpus/torch" 4096
fuzz torch_pickle "$build/pickles" 2048
fuzz prepare test/fuzz/corpus/prepare 4096
OPENMOE_FUZZ_TOKENIZER=test/data/unigram-400.model fuzz prepare test/fuzz/corpus/prepare 4096
