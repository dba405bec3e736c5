#!/usr/bin/env bash
# The routing study: trains its variants on the offline corpus, analyses every checkpoint, writes the
# report and the small results that are kept in scripts/study/results. Started again it goes on
# where it stopped.
#   scripts/study/run.sh [FOLDER]     FOLDER: everything that is made on the way; default runs/study
#   OPENMOE: the program, default build/release/openmoe. CORPUS: default FOLDER/corpus, built when absent.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-runs/study}
openmoe=${OPENMOE:-build/release/openmoe}
corpus=${CORPUS:-$folder/corpus}
trained="c4 wikipedia wikipedia_en stackexchange arxiv book github common_crawl the_stack"
mkdir -p "$folder"

[ -e "$corpus/manifest.json" ] || scripts/corpus/build_corpus.py --out "$corpus"

# Every second conversation is training text of two of the variants, the others are read by none.
if [ ! -e "$folder/data/done" ]; then
  mkdir -p "$folder/text"
  awk 'NR % 2 == 1' "$corpus/conversations.jsonl" > "$folder/text/conversations.jsonl"
  awk 'NR % 2 == 0' "$corpus/conversations.jsonl" > "$folder/text/conversations_unseen.jsonl"
  inputs=("$folder/text/conversations.jsonl")
  for source in $trained; do inputs+=("$corpus/$source.jsonl"); done
  "$openmoe" prepare --tokenizer data/sample/unigram-8000.model --input "${inputs[@]}" \
    --validation-fraction 0.05 --out "$folder/data"
  "$openmoe" prepare --chat --tokenizer data/sample/unigram-8000.model \
    --input "$folder/text/conversations.jsonl" --validation-fraction 0.05 --out "$folder/chat-data"
  touch "$folder/data/done"
fi

# train NAME DATA [OPTION...]: recipes/study/NAME.json to its end, in FOLDER/NAME, on one thread: two
# runs side by side on two cores are faster than one after the other on both.
train() {
  local name=$1 data=$2
  shift 2
  [ -e "$folder/$name/done" ] && return
  local go_on=("$@")
  [ -d "$folder/$name" ] && go_on+=(--resume)
  "$openmoe" train "recipes/study/$name.json" --data "$folder/$data" --out "$folder/$name" \
    --threads 1 "${go_on[@]}" > "$folder/$name.log" 2>&1
  touch "$folder/$name/done"
}

train instructions-in-warm-up data &
instructions=$!
train baseline data
# Until its routers freeze, this variant is the baseline: the same recipe, seed and data.
if [ ! -d "$folder/frozen-router" ]; then
  rm -rf "$folder/frozen-router.part"
  mkdir -p "$folder/frozen-router.part/checkpoints"
  cp -r "$folder/baseline/checkpoints/step-00000128" "$folder/frozen-router.part/checkpoints"
  mv "$folder/frozen-router.part" "$folder/frozen-router"
fi
train frozen-router data &
frozen=$!
wait $instructions
train chat chat-data --from "$folder/baseline"
wait $frozen

# The text: documents that no variant was trained on. Held-out documents of the training sources, the
# parallel texts and the conversations that were kept apart. First every checkpoint on some of it, for
# the course of training, then the last of each run on more.
export OMP_WAIT_POLICY=passive
inputs=("$folder/text/conversations_unseen.jsonl")
for language in en de es fr it nl pt ro ru ja ko zh_CN; do inputs+=("$corpus/parallel-$language.jsonl"); done
subjects=(baseline="$folder/baseline" instructions="$folder/instructions-in-warm-up" frozen="$folder/frozen-router"
  chat="$folder/chat" --data "$folder/data" --sources $trained --input "${inputs[@]}")
"$openmoe" analyze "${subjects[@]}" --every-checkpoint --positions 4096 --positions the_stack=32768 \
  --positions conversations_unseen=24576 --out "$folder/course"
"$openmoe" analyze "${subjects[@]}" --positions 16384 --positions the_stack=65536 \
  --positions conversations_unseen=49152 --drop tokens:1.25 --drop tokens:2 --drop assignments:1 --drop port:2:512 \
  --drop tokens:1.25:512 --drop tokens:1.25:4096 --compare-tokenizer test/data/unigram-400.model --out "$folder/final"
scripts/study/summarise.py "$folder/course" "$folder/final" scripts/study/results
