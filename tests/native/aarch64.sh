#!/bin/sh
# Cross-compiles the kernels for aarch64 and runs their test under qemu-user, with and without the dot-product
# extension. Debian: apt-get install g++-aarch64-linux-gnu qemu-user. PYTHON as in sanitize.sh.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PYTHONPATH=$here/../.. "${PYTHON:-python}" "$here/vectors.py" "$work/vectors.bin"
PYTHONPATH=$here/../.. "${PYTHON:-python}" "$here/ternary_vectors.py" "$work/ternary.bin"

"$here/build.sh" "$work/build" all -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static
qemu-aarch64 -cpu max "$work/build/kernel_test" "$work/vectors.bin" portable neon
qemu-aarch64 -cpu cortex-a53 "$work/build/kernel_test" "$work/vectors.bin"
qemu-aarch64 -cpu max "$work/build/ternary_test" "$work/ternary.bin"
qemu-aarch64 -cpu max "$work/build/arithmetic_portable"
qemu-aarch64 -cpu max "$work/build/arithmetic_neon"
