#!/usr/bin/env bash
# Fetches compose v2 and buildx, packages of the next Debian release, as CLI plugins.
#
# apt runs with a state of its own: the machine's sources and packages stay as they are.
set -euo pipefail

# shellcheck source=tools/container_host/common.sh
source "$(dirname -- "$(readlink -f -- "$0")")/common.sh"

RELEASE=trixie
PLUGINS=$DOCKER_CONFIG/cli-plugins
work=$HOST_ROOT/plugins

docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1 && exit

say "fetching compose and buildx from Debian $RELEASE"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/parts" "$PLUGINS"
chmod -R a+rX "$work"
key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$key] $(debian_mirror) $RELEASE main" >"$work/sources.list"
private=(
  -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts="$work/parts"
  -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache"
  -o APT::Sandbox::User=root
)
cd "$work"
apt-get -qq "${private[@]}" update
apt-get -qq "${private[@]}" download docker-compose docker-buildx
for package in docker-*.deb; do
  dpkg-deb -x "$package" unpacked
done
find unpacked -path '*/cli-plugins/docker-*' -type f -exec cp {} "$PLUGINS" \;
rm -rf lists cache unpacked docker-*.deb

docker compose version >&2
docker buildx version >&2
