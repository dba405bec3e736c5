#!/usr/bin/env bash
# Ranks on two hosts that share no memory: two network namespaces with names of their own, joined by a
# virtual cable. Golden files, and a training whose losses must be those of one host.
# Usage: test/two_hosts_test.sh OPENMOE SHARDS SOURCE. Exit code 77: not permitted here.
set -euo pipefail
openmoe=$(realpath "$1") shards=$2 source=$3
a=omoe$$a b=omoe$$b
work=$(mktemp -d)
cleanup() {
  ip netns del "$a" 2> /dev/null || true
  ip netns del "$b" 2> /dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
skip() {
  echo "skipped: $1" >&2
  exit 77
}
for tool in ip unshare mpirun; do
  command -v $tool > /dev/null || skip "no $tool here"
done
{ ip netns add "$a" && ip netns add "$b" && unshare --uts true; } 2> /dev/null || skip "network namespaces are not permitted here"
ip link add "$a" type veth peer name "$b" || skip "virtual cables are not permitted here"
for end in "$a 10.77.7.1" "$b 10.77.7.2"; do
  read -r name address <<< "$end"
  ip link set "$name" netns "$name"
  ip -n "$name" addr add "$address/24" dev "$name"
  ip -n "$name" link set "$name" up
  ip -n "$name" link set lo up
done

# In place of ssh: called as AGENT HOST COMMAND.
cat > "$work/agent" << AGENT
#!/usr/bin/env bash
shift
exec ip netns exec $b unshare --uts sh -c 'hostname host-b; exec sh -c "\$*"' sh "\$@"
AGENT
chmod +x "$work/agent"
on_two_hosts() {
  ip netns exec "$a" unshare --uts sh -c 'hostname host-a; exec "$@"' sh env OMP_NUM_THREADS=1 \
    OMPI_MCA_plm_rsh_agent="$work/agent" OMPI_MCA_plm_rsh_no_tree_spawn=1 OMPI_MCA_btl=tcp,vader,self \
    OMPI_MCA_btl_tcp_if_include=10.77.7.0/24 OMPI_MCA_oob_tcp_if_include=10.77.7.0/24 OMPI_MCA_mpi_yield_when_idle=1 \
    "$source/scripts/mpirun.sh" -np 4 --host 10.77.7.1:2,10.77.7.2:2 "$@"
}
[ "$(on_two_hosts hostname | sort | uniq -c | tr -s ' \n' ' ')" = " 2 host-a 2 host-b " ]

for grid in "--ep 4" "--ep 2 --tp 2"; do
  # shellcheck disable=SC2086
  on_two_hosts "$openmoe" selftest --golden "$source/test/golden" $grid | tee "$work/golden"
  grep -q " 0 failed" "$work/golden"
done

train() { # OUT LAUNCHER...
  local out=$1
  shift
  "$@" "$openmoe" train "$source/test/recipes/tiny-released.json" --data "$shards" --set run.num_steps=6 --ep 4 --out "$out"
}
losses() { sed 's/.*"loss":\([^,]*\),.*/\1/' "$1/metrics.jsonl"; }
# auto: two_level, since there are two hosts of two ranks.
train "$work/two" on_two_hosts > "$work/log"
grep -q "exchange.*two_level, 2 ranks per node" "$work/log"
train "$work/one" env OMP_NUM_THREADS=1 "$source/scripts/mpirun.sh" -np 4 > /dev/null
[ "$(losses "$work/two" | wc -l)" = 6 ]
paste <(losses "$work/two") <(losses "$work/one") |
  awk '{ d = $1 - $2; if (d < 0) d = -d; if (d > 1e-4 * $2) { print "losses differ: " $0; exit 1 } }'
echo "two hosts compute what one computes"
