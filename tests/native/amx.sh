#!/bin/sh
# The lane arithmetic over every input, and the AMX kernels on tile instructions written in C++ (amx_emulated.hpp);
# wants a CPU with AVX-512 VNNI. PYTHON as in sanitize.sh.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PYTHONPATH=$here/../.. "${PYTHON:-python}" "$here/vectors.py" "$work/vectors.bin"
"$here/build.sh" "$work/build" all -DES_AMX_EMULATED=ON
"$work/build/arithmetic_portable"
"$work/build/arithmetic_avx2"
"$work/build/arithmetic_avx512"
"$work/build/kernel_test" "$work/vectors.bin" amx
