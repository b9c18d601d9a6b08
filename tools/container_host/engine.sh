#!/usr/bin/env bash
# Installs Debian's Docker engine and starts it with state and socket of its own.
set -euo pipefail

# shellcheck source=tools/container_host/common.sh
source "$(dirname -- "$(readlink -f -- "$0")")/common.sh"

install_engine() {
  command -v dockerd debootstrap runc iptables >/dev/null && return
  say "installing docker.io, debootstrap, iptables, nftables and runc"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
    docker.io debootstrap iptables nftables runc >"$HOST_ROOT/install.log" 2>&1 ||
    fail "installation failed: see $HOST_ROOT/install.log"
}

start_engine() {
  engine_answers && return
  say "starting dockerd; log in $HOST_ROOT/dockerd.log"
  setsid dockerd --host "$DOCKER_HOST" --pidfile "$PID_FILE" \
    --data-root "$HOST_ROOT/data" --exec-root "$HOST_ROOT/exec" \
    --storage-driver overlay2 >"$HOST_ROOT/dockerd.log" 2>&1 </dev/null &

  for _ in {1..60}; do
    engine_answers && return
    sleep 0.5
  done
  fail "dockerd did not answer within 30 s: see $HOST_ROOT/dockerd.log"
}

mkdir -p "$HOST_ROOT" "$DOCKER_CONFIG"
install_engine
start_engine
