#!/usr/bin/env bash
# The routing study: trains its variants on the offline corpus, analyses every checkpoint, writes the
# report and the small results that are kept in scripts/study/results. Started again it goes on
# where it stopped.
#   scripts/study/run.sh [FOLDER]     FOLDER: everything that is made on the way; default runs/study
#   OPENMOE: the program, default build/release/openmoe. CORPUS: default FOLDER/corpus, built when absent.
#   LANGUAGES: of CORPUS/parallel-*.jsonl, the texts of Figure 7.
#   STUDY_STEPS: of each training, a multiple of 8; default 512, as the recipes say. Every stretch of them shrinks alike,
#   the analysis reads less, and the results go to FOLDER/results. All of it in a few minutes:
#   STUDY_STEPS=8 CORPUS=data/sample LANGUAGES="en de ru ja" scripts/study/run.sh runs/study-small
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-runs/study}
openmoe=${OPENMOE:-build/release/openmoe}
corpus=${CORPUS:-$folder/corpus}
languages=${LANGUAGES:-en de el es fr it nl pt ro ru ja ko zh_CN}
steps=${STUDY_STEPS:-512}
trained="c4 wikipedia wikipedia_en stackexchange arxiv book github common_crawl the_stack"
if ! [[ $steps =~ ^[1-9][0-9]{0,5}$ ]] || ((steps % 8 != 0)); then
  echo "STUDY_STEPS=$steps: allowed: a multiple of 8" >&2
  exit 2
fi
mkdir -p "$folder"
# Folders of another number of steps are another study.
if [ -e "$folder/steps" ] && [ "$(cat "$folder/steps")" != "$steps" ]; then
  echo "$folder: holds a study of $(cat "$folder/steps") steps, STUDY_STEPS is $steps; name another folder" >&2
  exit 2
fi
echo "$steps" > "$folder/steps"
warm_up=$((steps / 4))
results=scripts/study/results
positions=(4096 32768 24576) final_positions=(16384 65536 49152) # each source, the_stack, conversations
if [ "$steps" != 512 ]; then
  results=$folder/results
  positions=(1024 4096 4096) final_positions=(2048 8192 8192)
fi

# Commands run in the background, so that a signal to the script reaches them too; trainings then save before they end.
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'jobs -p | xargs -r kill 2> /dev/null; wait' EXIT
run() {
  "$@" &
  wait $!
}

[ -e "$corpus/manifest.json" ] || scripts/corpus/build_corpus.py --out "$corpus"

# Every second conversation is training text of two of the variants, the others are read by none.
if [ ! -e "$folder/data/done" ]; then
  mkdir -p "$folder/text"
  awk 'NR % 2 == 1' "$corpus/conversations.jsonl" > "$folder/text/conversations.jsonl"
  awk 'NR % 2 == 0' "$corpus/conversations.jsonl" > "$folder/text/conversations_unseen.jsonl"
  rm -rf "$folder/data" "$folder/chat-data"
  inputs=("$folder/text/conversations.jsonl")
  for source in $trained; do inputs+=("$corpus/$source.jsonl"); done
  run "$openmoe" prepare --tokenizer data/sample/unigram-8000.model --input "${inputs[@]}" \
    --validation-fraction 0.05 --out "$folder/data"
  run "$openmoe" prepare --chat --tokenizer data/sample/unigram-8000.model \
    --input "$folder/text/conversations.jsonl" --validation-fraction 0.05 --out "$folder/chat-data"
  touch "$folder/data/done"
fi

# train NAME DATA STEPS [OPTION...]: recipes/study/NAME.json to its end, in FOLDER/NAME, on one thread: two
# runs side by side on two cores are faster than one after the other on both.
train() {
  local name=$1 data=$2 num_steps=$3
  shift 3
  [ -e "$folder/$name/done" ] && return
  local go_on=("$@")
  if compgen -G "$folder/$name/checkpoints/step-*" > /dev/null; then go_on+=(--resume); else rm -rf "${folder:?}/$name"; fi
  local status=0
  "$openmoe" train "recipes/study/$name.json" --data "$folder/$data" --out "$folder/$name" \
    --set run.num_steps="$num_steps" --threads 1 "${go_on[@]}" > "$folder/$name.log" 2>&1 &
  local training=$!
  trap 'kill $training' TERM
  wait $training || status=$?
  trap - TERM
  wait $training || status=$? # a signal ended the first wait, not the training
  if ((status != 0)); then
    echo "training $name ended with exit code $status; the end of $folder/$name.log:" >&2
    tail -n 3 "$folder/$name.log" >&2
    return "$status"
  fi
  touch "$folder/$name/done"
}
schedule=(--set optimizer.warmup_steps="$warm_up" --set run.checkpoint_every="$warm_up" --set run.validate_every=$((steps / 2)))

train instructions-in-warm-up data "$steps" "${schedule[@]}" --set data.phases.0.extra_steps="$warm_up" &
instructions=$!
run train baseline data "$steps" "${schedule[@]}"
# Until its routers freeze, this variant is the baseline: the same recipe, seed and data.
if [ ! -d "$folder/frozen-router" ]; then
  rm -rf "$folder/frozen-router.part"
  mkdir -p "$folder/frozen-router.part/checkpoints"
  cp -r "$folder/baseline/checkpoints/$(printf 'step-%08d' "$warm_up")" "$folder/frozen-router.part/checkpoints"
  mv "$folder/frozen-router.part" "$folder/frozen-router"
fi
train frozen-router data "$steps" "${schedule[@]}" --set optimizer.router_frozen_from="$warm_up" &
frozen=$!
wait $instructions
run train chat chat-data $((steps >= 64 ? steps * 3 / 32 : 4)) --from "$folder/baseline"
wait $frozen

# The text: documents that no variant was trained on. Held-out documents of the training sources, the
# parallel texts and the conversations that were kept apart. First every checkpoint on some of it, for
# the course of training, then the last of each run on more.
export OMP_WAIT_POLICY=passive
inputs=("$folder/text/conversations_unseen.jsonl")
for language in $languages; do inputs+=("$corpus/parallel-$language.jsonl"); done
subjects=(baseline="$folder/baseline" instructions="$folder/instructions-in-warm-up" frozen="$folder/frozen-router"
  chat="$folder/chat" --data "$folder/data" --sources $trained --input "${inputs[@]}" --document-positions 2048)
[ -e "$folder/course/done" ] || run "$openmoe" analyze "${subjects[@]}" --every-checkpoint --positions "${positions[0]}" \
  --positions the_stack="${positions[1]}" --positions conversations_unseen="${positions[2]}" --out "$folder/course"
touch "$folder/course/done"
run "$openmoe" analyze "${subjects[@]}" --positions "${final_positions[0]}" --positions the_stack="${final_positions[1]}" \
  --positions conversations_unseen="${final_positions[2]}" --drop tokens:1.25 --drop tokens:2 --drop assignments:1 \
  --drop port:2:512 --drop tokens:1.25:512 --drop tokens:1.25:4096 --compare-tokenizer test/data/unigram-400.model \
  --out "$folder/final"
scripts/study/summarise.py "$folder/course" "$folder/final" "$results"
echo "the numbers and pictures are in $results, the reports are $folder/course/report.html and $folder/final/report.html"
