#!/usr/bin/env bash
# From a bare machine to a trained model: set-up, build, tokenise the checked-in text, train on two ranks with the experts
# spread over both, show what was learned. Usage: scripts/quickstart.sh [train option...], e.g. --set run.num_steps=50
set -euo pipefail
cd "$(dirname "$0")/.."
openmoe=build/release/openmoe
data=runs/quickstart-data
run=runs/quickstart

scripts/setup.sh
scripts/build.sh release openmoe
"$openmoe" prepare --tokenizer data/sample/unigram-8000.model --input data/sample/*.jsonl \
  --validation-fraction 0.1 --out "$data"
rm -rf "$run"
scripts/mpirun.sh -np 2 "$openmoe" train recipes/quickstart.json --data "$data" --out "$run" --ep 2 "$@"

# One JSON object per line: field(key) is the value of a key, without quotes.
json_field='function field(key, at) {
  if (!match($0, "\"" key "\":[^,}]*")) return ""
  at = length(key) + 3
  value = substr($0, RSTART + at, RLENGTH - at); gsub("\"", "", value); return value
}'
echo
echo "Training loss (UL2 first, then causal language modelling; the objective changes the scale):"
awk "$json_field"'
  { step[NR] = field("step"); loss[NR] = field("cross_entropy"); accuracy[NR] = field("accuracy"); phase[NR] = field("phase") }
  END {
    printf "  %6s %6s %14s %9s\n", "step", "phase", "cross-entropy", "accuracy"
    for (i = 1; i <= NR; ++i)
      if (i == 1 || i == NR || i % int(NR / 12 + 1) == 0 || phase[i] != phase[i - 1])
        printf "  %6d %6d %14.4f %9.4f\n", step[i], phase[i], loss[i], accuracy[i]
  }' "$run/metrics.jsonl"

echo
echo "Held-out documents, nats per token; a model that only knew how often each token occurs would have the entropy:"
"$openmoe" data summary --data "$data" --json > "$run/summary.jsonl"
awk "$json_field"'
  FILENAME ~ /summary/ { entropy[field("source")] = field("unigram_entropy"); next }
  { source = field("source"); if (!(source in first)) { names[++n] = source; first[source] = field("cross_entropy") }
    last[source] = field("cross_entropy"); accuracy[source] = field("accuracy") }
  END {
    printf "  %-16s %15s %14s %9s %16s\n", "source", "first validation", "at the end", "accuracy", "unigram entropy"
    for (i = 1; i <= n; ++i)
      printf "  %-16s %15.4f %14.4f %9.4f %16.4f\n", names[i], first[names[i]], last[names[i]], accuracy[names[i]], entropy[names[i]]
  }' "$run/summary.jsonl" "$run/validation.jsonl"
echo
echo "The run is in $run: recipe.json, metrics.jsonl, validation.jsonl and checkpoints."
