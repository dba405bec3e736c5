#!/usr/bin/env bash
# clang-tidy over the tree, on the release build's commands. Usage: scripts/tidy.sh [file.cpp...]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --analysis
cmake --preset release >/dev/null
if [ $# = 0 ]; then mapfile -t files < <(git ls-files 'apps/*.cpp' 'core/*.cpp' 'data/*.cpp' 'parallel/*.cpp'); else files=("$@"); fi
printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(nproc)" \
  clang-tidy-14 -p build/release --quiet --extra-arg=-Wno-unknown-warning-option
echo "tidy: clean"
