#!/usr/bin/env bash
# Makes build/python, an environment in which the Python tests find everything: torch, h5py and numpy as the distribution
# packages them, and safetensors, sacrebleu, openai, lm-eval and tensorboard from PyPI. Tests that miss something are skipped and say what.
set -euo pipefail
cd "$(dirname "$0")/../.."
packages=(python3-torch python3-h5py python3-numpy python3-venv)
for package in "${packages[@]}"; do
  if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" != installed ]; then
    echo "test/python/setup.sh: install these first: apt-get install --no-install-recommends ${packages[*]}" >&2
    exit 1
  fi
done
[ -x build/python/bin/pip ] || /usr/bin/python3 -m venv --system-site-packages build/python
build/python/bin/pip install --quiet safetensors sacrebleu openai 'lm-eval[api]' tensorboard 'setuptools<81'
echo "build/python is ready: configure again with cmake so that the tests use it"
