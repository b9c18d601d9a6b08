#!/usr/bin/env bash
# Makes a private Docker engine with compose v2 and base images on a bare Debian machine.
#
# For machines without Docker and without a container registry. Needs root. Everything lives under
# CONTAINER_HOST_ROOT (default /var/lib/baton-container-host, about 2 GB before the first build);
# Debian packages docker.io, debootstrap, iptables, nftables and runc are installed. Done steps are
# skipped, so that it can run again. down.sh stops the engine and, on request, deletes all of it.
#
# Prints the environment that points a Docker client at the engine: eval "$(up.sh)".
set -euo pipefail

here=$(dirname -- "$(readlink -f -- "$0")")
# shellcheck source=tools/container_host/common.sh
source "$here/common.sh"

[[ $(id -u) == 0 ]] || fail "needs root to install and start a container engine"
command -v apt-get >/dev/null || fail "needs Debian: apt-get is missing"

bash "$here/engine.sh"
bash "$here/plugins.sh"
bash "$here/images.sh"

# shellcheck source=.env
source "$here/../../.env"
# An image that was made here has another digest than the one it stands in for.
printf 'export PYTHON_IMAGE=%q\n' "${PYTHON_IMAGE%@*}"
printf 'export DOCKER_HOST=%q DOCKER_CONFIG=%q\n' "$DOCKER_HOST" "$DOCKER_CONFIG"
