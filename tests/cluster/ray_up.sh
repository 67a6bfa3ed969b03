#!/usr/bin/env bash
# `ray up` end to end on one machine: cluster/on-premises.yaml against sshd on 127.0.0.9 and 127.0.0.10, with the wheel of
# this commit, Redis and a token; then a job, its files brought back by rsync, and `ray down`.
# usage: ray_up.sh WHEEL PYTHON    the wheel of `make wheel`; a Python with Ray for the commands. Needs root, for sshd and
# a user `es-ray-up` of its own, which is removed at the end; and sshd, rsync and redis-server, from Debian.
set -euo pipefail
wheel=$(realpath "$1")
python=$2
root=$(cd "$(dirname "$0")/../.." && pwd)
user=es-ray-up
home=/home/$user
dir=$(mktemp -d /tmp/es-up-XXXXXX)
export PATH="$(dirname "$python"):/usr/sbin:$PATH"
step() { echo "== $1 ($SECONDS s)"; }
# The person at the cluster file: this user, with a home directory of its own.
person() { env HOME="$dir/home" RAY_TMPDIR="$dir" RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_UP_enable_autoscaler_v2=0 "$@"; }

finish() {
  [ -f "$dir/sshd.pid" ] && kill "$(cat "$dir/sshd.pid")" || true
  for _ in 1 2 3; do pgrep -u "$user" >/dev/null && kill $(pgrep -u "$user") 2>/dev/null && sleep 3; done || true
  pgrep -u "$user" >/dev/null && kill -9 $(pgrep -u "$user") || true  # processes of our own user, which nobody else uses
  userdel --remove "$user" 2>/dev/null || true
  rm -rf "$dir" /tmp/es-up-ray
}
trap finish EXIT

step "user, keys, sshd on loopback"
useradd --create-home --shell /bin/bash --password '*' "$user"  # no password, not locked: sshd refuses a locked user
install -d -m 700 "$dir/home/.ray" "$dir/home/.ssh"
install -d -m 700 -o "$user" -g "$user" "$home/.ssh" "$home/.ray"
ssh-keygen -q -t ed25519 -N '' -f "$dir/home/.ssh/id_ed25519"
ssh-keygen -q -t ed25519 -N '' -f "$dir/host_key"
install -m 600 -o "$user" -g "$user" "$dir/home/.ssh/id_ed25519.pub" "$home/.ssh/authorized_keys"
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$dir/home/.ray/auth_token")
getent passwd sshd >/dev/null || useradd --system --home /run/sshd --shell /usr/sbin/nologin sshd
mkdir -p /run/sshd
"$(command -v sshd)" -r -f /dev/null -h "$dir/host_key" -o PidFile="$dir/sshd.pid" -o UsePAM=no \
  -o ListenAddress=127.0.0.9 -o ListenAddress=127.0.0.10 -o PasswordAuthentication=no -o MaxStartups=100

echo "export RAY_TMPDIR=/tmp/es-up-ray" >>"$home/.bashrc"  # /tmp/ray may be another user's
install -d -o "$user" -g "$user" /tmp/es-up-ray

step "the cluster file of the repository, for these addresses"
work=$dir/work
mkdir -p "$work/dist" "$work/cluster" "$dir/ray"
cp "$wheel" "$root/constraints.txt" "$root/cluster/setup.sh" "$work/dist/"
# Both nodes are this machine and share a home: own ports, and no `ray stop`, which would end Ray processes of others.
sed -e "s/192\.0\.2\.10/127.0.0.9/" -e "s/\[192\.0\.2\.11, 192\.0\.2\.12\]/[127.0.0.10]/" -e "s/_workers: 2/_workers: 1/" \
  -e "s/ubuntu/$user/" -e "/- ray stop/d" -e "s/setup\.sh cuda,data/setup.sh plot/" \
  -e "s/--port=6379/--port=6479 --dashboard-port=8365 --ray-client-server-port=7479 --object-store-memory=100000000/" \
  -e "s/RAY_HEAD_IP:6379/RAY_HEAD_IP:6479 --num-cpus=1 --object-store-memory=100000000 --dashboard-agent-listen-port=0/" \
  -e "s#~/.ssh#$dir/home/.ssh#" -e "s/port=8090/port=0/" -e "s/6390/6490/g" "$root/cluster/on-premises.yaml" >"$work/cluster/up.yaml"
cd "$work"

step "ray up"
person ray up --yes --no-config-cache cluster/up.yaml
on_head() { person ray exec --no-config-cache cluster/up.yaml "$1" 2>&1; }

step "a worker joins"
for ((n = 0; n < 60; n++)); do
  on_head "ray status --address 127.0.0.1:6479" >"$dir/status" || true
  if grep -q "1.0 CPU" "$dir/status"; then break; fi
  sleep 3
done
cat "$dir/status"
grep -q "1.0 CPU" "$dir/status"

step "a job"
on_head "RAY_API_SERVER_ADDRESS=http://127.0.0.1:8365 ray job submit --submission-id smoke-1 -- es-service train egg-smoke --name smoke-1 --or-resume --runs-dir $home/runs" | tee "$dir/job"
grep -q "stopped at generation 10: goal" "$dir/job"
grep -q "succeeded" "$dir/job"

step "its files"
person ray rsync-down cluster/up.yaml "$home/runs/smoke-1/" "$work/fetched/"
runuser -u "$user" -- env HOME="$home" "$home/es-service/venv/bin/es-service" replay smoke-1 --verify --runs-dir "$home/runs"
cmp "$work/fetched/journal.bin" "$home/runs/smoke-1/journal.bin"

step "ray down"
person ray down --yes cluster/up.yaml  # its `ray stop` runs as our user and can end no process of another
if pgrep -u "$user" -f gcs_server; then
  echo "error: the head is still there" >&2
  exit 1
fi
step "done"
