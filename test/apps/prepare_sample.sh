#!/usr/bin/env bash
# Tokenises the sample corpus for the tests of whole commands. Usage: prepare_sample.sh OPENMOE OUT
set -euo pipefail
sample=$(cd "$(dirname "$0")/../../data/sample" && pwd)
rm -rf "$2"
"$1" prepare --tokenizer "$sample/unigram-8000.model" --input "$sample"/*.jsonl --out "$2" --validation-fraction 0.1
