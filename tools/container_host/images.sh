#!/usr/bin/env bash
# Makes the base images that the compose stack names, from Debian packages instead of a registry.
#
# They stand in for the official images under the same tags: enough to run every step of our
# Dockerfiles and the stack, no proof about the official images themselves. What pip needs on this
# machine (certificate, local wheels) goes into the base image, so that the Dockerfiles stay plain.
set -euo pipefail

here=$(dirname -- "$(readlink -f -- "$0")")
# shellcheck source=tools/container_host/common.sh
source "$here/common.sh"
# shellcheck source=.env
source "$here/../../.env"

RELEASE=bookworm
# The images have no digest here: see up.sh.
PYTHON_IMAGE=${PYTHON_IMAGE%@*}
CERTIFICATES=/etc/ssl/certs/ca-certificates.crt
rootfs=$HOST_ROOT/rootfs

have_image() {
  docker image inspect "$1" >/dev/null 2>&1
}

# Debian's 3.11 is older than Baton needs. This machine's own goes to where the official image has
# it; without one of that release the stand-in stays as it is.
copy_interpreter() {
  local version=${PYTHON_IMAGE#*:} prefix
  version=${version%.*}
  prefix=$("python$version" -c 'import sys; print(sys.base_prefix)' 2>/dev/null) || return 0
  [[ $prefix != /usr ]] || return 0
  say "copying Python $version from $prefix"
  mkdir -p "$rootfs/usr/local/lib"
  (cd "$prefix" && tar --exclude=site-packages --exclude=__pycache__ --exclude=test -c \
    "bin/python$version" "lib/python$version" include lib/libpython*.so*) |
    tar -C "$rootfs/usr/local" -x
  ln -sf "python$version" "$rootfs/usr/local/bin/python3"
  ln -sf python3 "$rootfs/usr/local/bin/python"
  chroot "$rootfs" ldconfig
  chroot "$rootfs" /usr/local/bin/python3 -m ensurepip --default-pip >/dev/null 2>&1
}

make_rootfs() {
  [[ -e $rootfs.done ]] && return
  say "bootstrapping Debian $RELEASE (about two minutes)"
  rm -rf "$rootfs"
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
    "$RELEASE" "$rootfs" "$(debian_mirror)" >"$HOST_ROOT/debootstrap.log" 2>&1 ||
    fail "debootstrap failed: see $HOST_ROOT/debootstrap.log"
  ln -sf python3 "$rootfs/usr/bin/python"
  copy_interpreter
  cp -L "$CERTIFICATES" "$rootfs$CERTIFICATES"
  rm -rf "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/*
  touch "$rootfs.done"
}

# Directories of wheels that this machine's pip searches, if any.
local_wheels() {
  python3 -m pip config list 2>/dev/null | sed -n "s/.*find-links='\(.*\)'/\1/p" |
    tr ' ' '\n' | grep '^/' | sort -u
}

copy_local_wheels() {
  local directory
  for directory in $(local_wheels); do
    say "adding the wheels in $directory to the base image"
    mkdir -p "$rootfs$directory"
    cp -u "$directory"/*.whl "$rootfs$directory/"
  done
}

make_python() {
  have_image "$PYTHON_IMAGE" && return
  copy_local_wheels
  say "importing $PYTHON_IMAGE"
  tar -C "$rootfs" -c . | docker import \
    --change "ENV PIP_CERT=$CERTIFICATES SSL_CERT_FILE=$CERTIFICATES" \
    --change "ENV REQUESTS_CA_BUNDLE=$CERTIFICATES PIP_DEFAULT_TIMEOUT=180" \
    --change "ENV PIP_FIND_LINKS=\"$(local_wheels | xargs)\"" \
    --change 'CMD ["python3"]' - "$PYTHON_IMAGE" >/dev/null
}

make_redis() {
  have_image "$REDIS_IMAGE" && return
  say "building $REDIS_IMAGE"
  docker build --quiet --tag "$REDIS_IMAGE" - >/dev/null <<DOCKERFILE
FROM $PYTHON_IMAGE
RUN apt-get update -qq \
 && apt-get install -qq -y --no-install-recommends redis-server \
 && rm -rf /var/lib/apt/lists/*
CMD ["redis-server"]
DOCKERFILE
}

make_rootfs
make_python
make_redis
