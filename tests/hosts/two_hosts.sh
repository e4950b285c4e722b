#!/usr/bin/env bash
# Two hosts in namespaces, `ray up` over SSH, a run spread over both, one host cut off in mid-run. See README.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ "${1:-}" != inside ]; then
  work=$(mktemp -d /var/tmp/tltrain-hosts-XXXXXX)
  trap 'rm -rf "$work"' EXIT
  # Whatever is started below ends with these namespaces, and nothing of this machine's network is touched.
  unshare --net --pid --mount --fork --mount-proc --kill-child "$here/two_hosts.sh" inside "$work"
  exit
fi

work=$2
project=$(cd "$here/../.." && pwd)
export PATH="$project/.venv/bin:/usr/sbin:$PATH"
export HOME="$work/home" XDG_STATE_HOME="$work/state" XDG_DATA_HOME="$work/data" XDG_CONFIG_HOME="$work/config"
mkdir -p "$work"/{home,config,shared} && chmod 700 "$work"/home
cd "$project"

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

on_host() {
  ssh -i "$work/key" -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    -o ConnectTimeout=2 -o LogLevel=ERROR "root@10.77.0.1$1" "${@:2}"
}

say "two hosts"
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
cat >"$work/sshd_config" <<END
HostKey $work/host_key
AuthorizedKeysFile $work/key.pub
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
END
ip link set lo up
ip link add switch type bridge
ip address add 10.77.0.1/24 dev switch
ip link set switch up
for number in 1 2; do
  unshare --net --pid --mount --uts --fork --mount-proc --kill-child "$here/host.sh" "$work" "$number" \
    >"$work/host$number.log" 2>&1 &
  until child=$(pgrep -P $!); do sleep 0.1; done
  ip link add "port$number" type veth peer name eth0 netns "$child"
  ip link set "port$number" master switch up
done
for number in 1 2; do
  for attempt in $(seq 100); do
    on_host "$number" hostname 2>/dev/null && break
    [ "$attempt" -lt 100 ] || { cat "$work/host$number.log"; fail "host $number does not answer"; }
    sleep 0.1
  done
done

start="export PATH=$project/.venv/bin:\$PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/root/.ray/auth_token"
start="$start GLOO_SOCKET_IFNAME=eth0 RAY_USAGE_STATS_ENABLED=0 RAY_enable_autoscaler_v2=0"
start="$start RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=3"
cat >"$work/up.yaml" <<END
cluster_name: two-hosts
provider: {type: local, head_ip: 10.77.0.11, worker_ips: [10.77.0.12]}
auth: {ssh_user: root, ssh_private_key: $work/key}
min_workers: 1
max_workers: 1
file_mounts: {/root/.ray/auth_token: $work/token/two-hosts}
head_start_ray_commands:
  - $project/.venv/bin/ray stop
  - $start; env -u SSH_CLIENT ray start --head --port=6379 --num-cpus=1 --dashboard-host=127.0.0.1
    --autoscaling-config=~/ray_bootstrap_config.yaml
worker_start_ray_commands:
  - $project/.venv/bin/ray stop
  - $start; env -u SSH_CLIENT ray start --address=\$RAY_HEAD_IP:6379 --num-cpus=1
END
cat >"$work/two-hosts.yaml" <<END
kind: ray-up
config: up.yaml
token: file:token/two-hosts
END

say "tltrain cluster up"
tltrain cluster up "$work/two-hosts.yaml" >"$work/up.log" 2>&1 || { tail -20 "$work/up.log"; fail "ray up"; }
for attempt in $(seq 60); do
  tltrain cluster status "$work/two-hosts.yaml" --json >"$work/status.json" 2>"$work/status.log" || true
  grep -q '"total": 2.0' "$work/status.json" && break
  [ "$attempt" -lt 60 ] || {
    cat "$work/status.json" "$work/status.log"
    on_host 1 'tail -n 30 /tmp/ray/session_latest/logs/monitor.*'
    fail "the second host has not joined"
  }
  sleep 2
done
tltrain cluster status "$work/two-hosts.yaml"

say "tltrain submit, two workers on two hosts"
tltrain submit jobs/two-node.yaml --cluster "$work/two-hosts.yaml" --set name=two-hosts \
  --set storage="$work/shared" --set train.epochs=5 --set model.freeze_depth=0 \
  --set resources.wait_s=240 >"$work/submit.log" 2>&1 &
submit=$!
metrics=$work/shared/two-hosts/metrics.jsonl
wait_rows() {
  until [ "$(cat "$metrics" 2>/dev/null | wc -l)" -ge "$1" ]; do
    kill -0 "$submit" 2>/dev/null || { cat "$work/submit.log"; fail "the job ended early"; }
    sleep 0.5
  done
}
wait_rows 2

say "host 2 is cut off after $(wc -l <"$metrics") of 5 epochs"
ip link set port2 down
sleep 20
ip link set port2 up
say "host 2 is plugged in again"
wait "$submit" || { cat "$work/submit.log"; fail "the run did not recover"; }
tail -n 15 "$work/submit.log"

say "what is left"
python - "$work/shared/two-hosts" <<'END'
import json, pathlib, sys

run = pathlib.Path(sys.argv[1])
rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
state = json.loads((run / "run.json").read_text())
keys = [(row["lane"], row["step"]) for row in rows]
print(len(rows), "rows; state", state["state"], "; attempts", state.get("attempts"))
assert len(keys) == len(set(keys)) == 5, keys
assert state["state"] == "finished", state
END

say "tltrain cluster down"
tltrain cluster down "$work/two-hosts.yaml" >"$work/down.log" 2>&1 || { tail -40 "$work/down.log"; fail "ray down"; }
say "done"
