#!/usr/bin/env bash
# Run on every node by `ray up` (setup_commands): installs the wheel that `make wheel` built, and its pinned
# dependencies, into ../venv, and lets every shell of this user find it. `make wheel` puts it beside the wheel.
# usage: setup.sh EXTRAS     for example: setup.sh cuda,data,s3
set -euo pipefail
extras=${1:?name the extras of es-service to install, for example: setup.sh cuda,data,s3}
dist=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
here=$(dirname "$dist")

wheels=("$dist"/es_service-*.whl)
if [ ${#wheels[@]} != 1 ] || [ ! -f "${wheels[0]}" ]; then
  echo "error: $dist must hold one wheel and holds: ${wheels[*]}; run 'make wheel' before 'ray up'" >&2
  exit 1
fi
wheel=${wheels[0]}

# The wheel holds compiled kernels for one Python: es_service-0.1.0-cp312-... needs python3.12.
tag=${wheel##*-cp3}
python=python3.${tag%%-*}
if ! command -v "$python" >/dev/null; then
  echo "error: $(basename "$wheel") needs $python, which is not on $(hostname); build it there: make wheel PYTHON=..." >&2
  exit 1
fi
test -x "$here/venv/bin/python" || "$python" -m venv "$here/venv"

pip=("$here/venv/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" install --constraint "$dist/constraints.txt" "es-service[$extras] @ file://$wheel"
"${pip[@]}" install --force-reinstall --no-deps "$wheel"  # pip keeps an older build of the same version otherwise

cat >"$here/env" <<ENV
export PATH="$here/venv/bin:\$PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="\$HOME/.ray/auth_token"
export RAY_USAGE_STATS_ENABLED=0
ENV
chmod 600 "$HOME/.ray/auth_token"
grep -qxF ". $here/env" "$HOME/.bashrc" 2>/dev/null || echo ". $here/env" >>"$HOME/.bashrc"
"$here/venv/bin/es-service" doctor
