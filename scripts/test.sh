#!/usr/bin/env bash
# Set-up, build, layout of the code, all tests; ends with ctest's summary. Usage: scripts/test.sh [ctest option...]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
scripts/build.sh release
scripts/format.sh --check
ctest --preset release -j "$(nproc)" "$@"
