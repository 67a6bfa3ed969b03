#!/bin/sh
# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, then the threads under ThreadSanitizer.
# AMX runs on emulated tiles. PYTHON names an interpreter with numpy (default: python).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PYTHONPATH=$here/../.. "${PYTHON:-python}" "$here/vectors.py" "$work/vectors.bin"

"$here/build.sh" "$work/address" -DES_AMX_EMULATED=ON \
    -DCMAKE_CXX_FLAGS="-g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
"$work/address/kernel_test" "$work/vectors.bin"

"$here/build.sh" "$work/thread" -DES_AMX_EMULATED=ON -DCMAKE_CXX_FLAGS="-g1 -fsanitize=thread"
"$work/thread/kernel_test" "$work/vectors.bin"
