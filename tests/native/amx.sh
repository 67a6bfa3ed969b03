#!/bin/sh
# The AMX kernels on tile instructions written in C++ (amx_emulated.hpp); wants a CPU with AVX-512 VNNI.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PYTHONPATH=$here/../.. "${PYTHON:-python}" "$here/vectors.py" "$work/vectors.bin"
"$here/build.sh" "$work/build" -DES_AMX_EMULATED=ON
"$work/build/kernel_test" "$work/vectors.bin" amx
