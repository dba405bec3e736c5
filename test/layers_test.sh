#!/usr/bin/env bash
# Who may include whom, and which folder holds each third-party library: link targets say it for libraries, this says it for
# headers. Usage: test/layers_test.sh
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0

# allow FOLDER 'FOLDERS IT MAY INCLUDE': its own is always allowed.
allow() {
  local bad
  bad=$(grep -rnE '#include "(apps|core|cuda|data|parallel|test)/' "$1" --include='*.h' --include='*.cpp' --include='*.cu' --include='*.cuh' |
    grep -vE "#include \"($1${2:+|$2})/" || true)
  if [ -n "$bad" ]; then
    echo "layers: $1/ may include ${2:-nothing else}, found:" >&2
    echo "$bad" >&2
    failed=1
  fi
}
allow core ''
allow data 'core'
allow parallel 'core'
allow cuda 'core|parallel|test/cuda_emulation'
allow apps 'core|data|parallel|cuda'

# only HEADER 'FOLDERS': a library's headers stay in these folders.
only() {
  local bad
  bad=$(grep -rnE "#include <$1" apps core cuda data parallel --include='*.h' --include='*.cpp' --include='*.cu' --include='*.cuh' |
    grep -vE "^($2)/" || true)
  if [ -n "$bad" ]; then
    echo "layers: <$1> belongs to $2, found:" >&2
    echo "$bad" >&2
    failed=1
  fi
}
only 'mpi\.h' parallel
only 'hdf5' data
only '(sentencepiece|openssl|xxhash|zlib|zstd|zip\.h)' data
only 'CLI/' apps
only 'Random123/' core
only '(cuda|cublas|cudnn|nccl)' cuda
only 'immintrin' core
[ $failed = 0 ] && echo "layers: clean"
exit $failed
