# Paths and small functions of the private container host; sourced by its scripts.
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2034  # $(REPO_URI) is apt's; some paths are used by one script only

HOST_ROOT=${CONTAINER_HOST_ROOT:-/var/lib/baton-container-host}
SOCKET=$HOST_ROOT/docker.sock
PID_FILE=$HOST_ROOT/docker.pid

export DOCKER_HOST=unix://$SOCKET
export DOCKER_CONFIG=$HOST_ROOT/client

say() {
  printf 'container_host: %s\n' "$*" >&2
}

fail() {
  say "$*"
  exit 2
}

engine_answers() {
  docker info >/dev/null 2>&1
}

# The mirror that this machine's own apt uses, so that no other host is contacted.
debian_mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
    grep -v -e security | head -n 1
}
