#!/bin/sh
# build.sh DIR TARGET [cmake options]: builds one target (or all) in DIR; called by the scripts beside it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$1 target=$2
shift 2
{
    cmake -S "$here" -B "$dir" -DCMAKE_BUILD_TYPE=Release "$@" &&
        cmake --build "$dir" --parallel 2 --target "$target"
} >"$dir.log" 2>&1 || { cat "$dir.log"; exit 1; }
