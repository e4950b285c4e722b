#!/usr/bin/env bash
# One host of two_hosts.sh, in namespaces of its own: WORK is a folder that both share, NUMBER is 1 or 2.
set -euo pipefail
work=$1
number=$2
mount -t tmpfs tmpfs /tmp
mkdir /tmp/changes /tmp/overlay
mount -t overlay -o "lowerdir=/root,upperdir=/tmp/changes,workdir=/tmp/overlay" overlay /root  # a home of its own
mount -t tmpfs tmpfs /run
mkdir /run/sshd
hostname "host$number"
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.1; done
ip address add "10.77.0.1$number/24" dev eth0
ip link set eth0 up
ip route add default via 10.77.0.1  # leads nowhere; Ray takes the interface of this route for the host's own
exec /usr/sbin/sshd -D -e -f "$work/sshd_config"
