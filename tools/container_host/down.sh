#!/usr/bin/env bash
# Stops the private engine of up.sh; with --purge deletes its images and files too.
set -euo pipefail

# shellcheck source=tools/container_host/common.sh
source "$(dirname -- "$(readlink -f -- "$0")")/common.sh"

if [[ -s $PID_FILE ]]; then
  engine=$(<"$PID_FILE")
  say "stopping dockerd ($engine)"
  kill "$engine" 2>/dev/null || true
  for _ in {1..60}; do
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.5
  done
  kill -0 "$engine" 2>/dev/null && fail "dockerd $engine did not stop within 30 s"
fi

if [[ ${1:-} == --purge ]]; then
  say "deleting $HOST_ROOT"
  rm -rf "$HOST_ROOT"
fi
