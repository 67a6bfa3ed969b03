#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine, with token authentication, until Ctrl-C: to try the flow of a real one.
# usage: local.sh [NODES]    nodes with 1 CPU each beside the head (default 2)
# It has its own ports, token and temporary directory and ends the processes that it started, no others.
set -euo pipefail
nodes=${1:-2}
port=${LOCAL_CLUSTER_PORT:-6391}
dashboard=${LOCAL_CLUSTER_DASHBOARD_PORT:-8291}
dir=$(mktemp -d /tmp/es-local-XXXXXX)
pids=()

finish() {
  trap '' INT TERM
  for ((n = ${#pids[@]} - 1; n >= 0; n--)); do kill "${pids[n]}" 2>/dev/null || true; done
  wait
  rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$dir/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$dir/token
export RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0  # else each node takes half a minute to stop

start() {
  local log=$dir/node-${#pids[@]}.log
  # A process group of its own, so that Ctrl-C reaches this script alone, which then ends them in order.
  setsid ray start "$@" --object-store-memory=100000000 --min-worker-port=0 --max-worker-port=0 \
    --dashboard-agent-listen-port=0 --temp-dir="$dir/${#pids[@]}" --block >"$log" 2>&1 &
  pids+=($!)
  # One after the other: Ray tells nodes of one machine apart only once they have registered.
  for ((n = 0; n < 600; n++)); do
    if grep -q "This command will now block" "$log"; then return; fi
    kill -0 "${pids[-1]}" 2>/dev/null || break
    sleep 0.2
  done
  echo "error: this node did not start" >&2
  cat "$log" >&2
  exit 1
}

start --head --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --num-cpus=0 \
  --ray-client-server-port=$((port + 1000))
for ((node = 0; node < nodes; node++)); do
  start --address="127.0.0.1:$port" --num-cpus=1
done

cat <<END
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$dir/token RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard
es-service train egg-smoke --address 127.0.0.1:$port
ray job submit -- es-service train egg-smoke --name smoke-1 --or-resume --runs-dir $PWD/runs
The two commands work in a shell with that line. Ctrl-C here ends the cluster.
END
wait -n "${pids[@]}" || true
echo "a node has ended; the others follow. Logs:" >&2
tail -n 5 "$dir"/node-*.log >&2
