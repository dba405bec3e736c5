#!/usr/bin/env bash
# Configures and builds one preset. Usage: scripts/build.sh [release|debug|cuda|asan|tsan] [target...]
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
shift || true
cmake --preset "$preset" >/dev/null
if [ $# = 0 ]; then set -- all; fi
cmake --build --preset "$preset" --target "$@"
