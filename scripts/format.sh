#!/usr/bin/env bash
# clang-format (version 14, so that all machines agree). Usage: scripts/format.sh [--check]
#   without option: lays out the files changed since the last commit; --check: names files of the whole tree that are not.
set -euo pipefail
cd "$(dirname "$0")/.."
patterns=('*.h' '*.cpp' '*.cu' '*.cuh')
if [ "${1:-}" = --check ]; then
  git ls-files -z -- "${patterns[@]}" | xargs -0 clang-format-14 --dry-run -Werror
  echo "format: clean"
elif [ $# = 0 ]; then
  { git diff --name-only -z --diff-filter=d HEAD -- "${patterns[@]}"
    git ls-files -z --others --exclude-standard -- "${patterns[@]}"; } | xargs -0 -r clang-format-14 -i
else
  echo "format: unknown option $1; allowed: --check" >&2
  exit 2
fi
