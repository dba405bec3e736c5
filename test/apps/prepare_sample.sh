#!/usr/bin/env bash
# Tokenises the checked-in sample into OUT, afresh. Usage: prepare_sample.sh OPENMOE OUT
set -euo pipefail
sample="$(cd "$(dirname "$0")/../../data/sample" && pwd)"
rm -rf "$2"
"$1" prepare --tokenizer "$sample/unigram-8000.model" --input "$sample"/*.jsonl --validation-fraction 0.1 --out "$2"
