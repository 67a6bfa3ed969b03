#!/bin/sh
# build.sh DIR [cmake options]: builds kernel_test in DIR. Sourced by nothing; called by the scripts beside it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$1
shift
cmake -S "$here" -B "$dir" -DCMAKE_BUILD_TYPE=Release "$@" >"$dir.log" 2>&1 || { cat "$dir.log"; exit 1; }
cmake --build "$dir" --parallel 2 >>"$dir.log" 2>&1 || { cat "$dir.log"; exit 1; }
