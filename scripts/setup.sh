#!/usr/bin/env bash
# Installs what Debian 12 and Ubuntu 24.04 package for building and testing. Safe to run twice: does nothing when nothing is
# missing. Where it may not install, it says what to install and fails. Where there is nvcc it also fetches the headers of NVIDIA's
# cudnn-frontend into build/, for attention by cuDNN; without them the CUDA backend has its own kernels only.
# Usage: scripts/setup.sh [--analysis]    --analysis: also what tidy.sh and sanitize.sh thread need
set -euo pipefail

packages=(
  build-essential cmake ninja-build ccache git pkg-config
  libopenmpi-dev openmpi-bin openssh-client  # mpirun looks for ssh even on one host
  libhdf5-dev libssl-dev libxxhash-dev libzstd-dev zlib1g-dev
  libsentencepiece-dev libprotobuf-dev  # Ubuntu's sentencepiece.pc wants protobuf-lite.pc
  libcli11-dev nlohmann-json3-dev librandom123-dev
  libzip-dev  # PyTorch files are zip archives
  libcpp-httplib-dev  # openmoe serve
  libboost-context-dev  # threads of emulated devices, in tests
  catch2 clang-format-14
)
if [ "${1:-}" = --analysis ]; then
  packages+=(clang-14 clang-tidy-14 libomp-14-dev llvm-14)
elif [ $# -gt 0 ]; then
  echo "setup: unknown option $1; allowed: --analysis" >&2
  exit 2
fi

# The headers come in a Python wheel; nothing of Python is installed.
frontend_version=1.32.0
fetch_cudnn_frontend() {
  local root folder wheels
  command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] || return 0
  root=$(cd "$(dirname "$0")/.." && pwd)
  folder=$root/build/cudnn-frontend
  [ ! -e "$folder/include/cudnn_frontend.h" ] || return 0
  wheels=$(mktemp -d)
  if python3 -m pip download -q --no-deps --only-binary=:all: -d "$wheels" "nvidia-cudnn-frontend==$frontend_version" 2>"$wheels/why" &&
    python3 -m zipfile -e "$wheels"/*.whl "$wheels/all" 2>"$wheels/why" && mkdir -p "$folder" && mv "$wheels/all/include" "$folder/"; then
    echo "setup: headers of cudnn-frontend $frontend_version are in build/cudnn-frontend/include"
  else
    echo "setup: without cuDNN's attention: cannot fetch nvidia-cudnn-frontend $frontend_version with pip ($(tail -n 1 "$wheels/why"));" \
      "unpack it elsewhere and configure with -DOPENMOE_CUDNN_FRONTEND_INCLUDE_DIR=FOLDER/include" >&2
  fi
  rm -rf "$wheels"
}

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then
  echo "setup: everything is installed"
  fetch_cudnn_frontend
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "setup: this script knows Debian 12 and Ubuntu 24.04 only; install what these packages hold: ${missing[*]}" >&2
  exit 1
fi

as_root=()
if [ "$(id -u)" != 0 ]; then
  if command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
    as_root=(sudo)
  else
    echo "setup: missing packages and no right to install them. Ask an administrator for:" >&2
    echo "  apt-get install ${missing[*]}" >&2
    exit 1
  fi
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -q
"${as_root[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}"
fetch_cudnn_frontend
