#!/usr/bin/env bash
# Builds and runs the tests under sanitizers. Usage: scripts/sanitize.sh address|thread [ctest option...]
#   address: AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer
#   thread:  ThreadSanitizer with Archer, which tells it of OpenMP's own synchronisation
# Both with clang, which compiles instrumented code three times as fast as GCC.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
  address) preset=asan ;;
  thread) preset=tsan ;;
  *) echo "sanitize: found '${1:-}', allowed: address, thread" >&2; exit 2 ;;
esac
shift
scripts/setup.sh --analysis
scripts/build.sh "$preset"
ctest --preset "$preset" "$@"
