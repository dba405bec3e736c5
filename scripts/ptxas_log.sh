#!/bin/sh
# Runs a compiler (the arguments). What ptxas reports about registers and spills goes to OBJECT.ptxas beside the object file, for
# the test of the kernels' resources; everything else stays on stderr.
out=
previous=
for argument in "$@"; do
  [ "$previous" = -o ] && out=$argument
  previous=$argument
done
log=$(mktemp)
"$@" 2>"$log"
status=$?
[ -n "$out" ] && grep -E '^ptxas info|bytes stack frame' "$log" >"$out.ptxas"
grep -vE '^ptxas info|bytes stack frame' "$log" >&2
rm -f "$log"
exit $status
