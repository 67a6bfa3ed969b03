#!/bin/sh
# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, then their threads under ThreadSanitizer.
# AMX runs on emulated tiles. PYTHON names an interpreter with numpy (default: python).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PYTHONPATH=$here/../.. "${PYTHON:-python}" "$here/vectors.py" "$work/vectors.bin"
PYTHONPATH=$here/../.. "${PYTHON:-python}" "$here/ternary_vectors.py" "$work/ternary.bin"

"$here/build.sh" "$work/address" kernel_test -DES_AMX_EMULATED=ON -DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1" \
    -DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all"
"$here/build.sh" "$work/address" ternary_test
"$work/address/kernel_test" "$work/vectors.bin"
"$work/address/ternary_test" "$work/ternary.bin"

"$here/build.sh" "$work/thread" kernel_test -DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1" -DCMAKE_CXX_FLAGS=-fsanitize=thread
"$here/build.sh" "$work/thread" ternary_test
"$work/thread/kernel_test" "$work/vectors.bin"
"$work/thread/ternary_test" "$work/ternary.bin"
