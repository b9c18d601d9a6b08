#!/usr/bin/env bash
# Runs the compose stack for real: build, start, stream, scale prefill to two, stream, take down.
#
# Uses the Docker engine with compose v2 that answers here. Where none does, it makes a private one
# (tools/container_host/up.sh: root and Debian; several GB and minutes the first time) and runs
# without Jaeger, Prometheus and Grafana, whose images cannot be had without a registry; a stand-in
# receives the telemetry. SHARED_MEMORY=1 runs with deploy/compose.shared-memory.yaml, KEEP=1 leaves stack
# and engine running. Needs a Python with Baton: `make e2e-compose`.
set -euo pipefail
cd "$(dirname -- "$(readlink -f -- "$0")")/.."

export COMPOSE_PROJECT_NAME=baton-e2e COMPOSE_PROFILES=cpu
export ROUTER_PORT=${ROUTER_PORT:-17411} GATEWAY_PORT=${GATEWAY_PORT:-17480}
files=(-f docker-compose.yml)
own_engine=false
begun=$SECONDS

say() {
  printf 'compose_e2e: [%3d s] %s\n' $((SECONDS - begun)) "$*"
}

stack() {
  docker compose "${files[@]}" "$@"
}

find_engine() {
  if docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1; then
    say "using the Docker engine $(docker version --format '{{.Server.Version}}') that answers here"
    return
  fi
  say "no Docker engine with compose v2 answers: making a private one (tools/container_host)"
  environment=$(bash tools/container_host/up.sh)
  eval "$environment"
  own_engine=true
  files+=(-f tools/container_host/compose.bare.yaml)
  say "left out here: Jaeger, Prometheus and Grafana; images from Debian packages stand in for the official"
}

finish() {
  local code=$?
  trap - EXIT
  if ((code != 0)); then
    say "FAILED; the containers and their last words:"
    stack ps --all || true
    stack logs --tail 40 || true
  fi
  if [[ -n ${KEEP:-} ]]; then
    say "kept: COMPOSE_PROJECT_NAME=$COMPOSE_PROJECT_NAME docker compose ${files[*]} down -v"
    exit "$code"
  fi
  stack down --volumes --timeout 20 >/dev/null 2>&1 || true
  if $own_engine; then bash tools/container_host/down.sh; fi
  exit "$code"
}

check_nothing_left() {
  local kind left
  for kind in 'ps --all' 'volume ls' 'network ls'; do
    # shellcheck disable=SC2086  # two words on purpose
    left=$(docker $kind --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME")
    [[ -z $left ]] || { say "docker $kind still shows: $left"; return 1; }
  done
}

eventually() {
  for _ in {1..60}; do
    "$@" && return
    sleep 0.5
  done
  say "not within 30 s: $*"
  return 1
}

# The stand-in for the collector logs what it receives.
spans() {
  stack logs --no-color --no-log-prefix collector | awk '/span / { print $2 ":" $3 }' | sort -u
}

received_span_of() {
  spans | grep "^baton-$1:" >/dev/null
}

check_stand_in() {
  local service
  for service in router admission prefill decode; do
    eventually received_span_of "$service"
  done
  say "spans arrived: $(spans | xargs)"
}

fetch() {
  python -c 'import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read())' "$1"
}

console_knows() {
  fetch "http://$(stack port jaeger 16686)/api/services" | grep "$1" >/dev/null
}

metrics_know() {
  fetch "http://$(stack port prometheus 9090)/api/v1/query?query=$1" | grep "$2" >/dev/null
}

dashboards_know() {
  fetch "http://$(stack port grafana 3000)/api/search" | grep "$1" >/dev/null
}

check_console() {
  local service
  for service in router admission prefill decode; do
    eventually console_knows "baton-$service"
  done
  eventually metrics_know gen_ai_server_time_to_first_token_seconds_count baton-router
  eventually dashboards_know '"uid":"baton-overview"'
  say "Jaeger shows every service, Prometheus the router's metrics, Grafana the dashboards"
}

find_engine
trap finish EXIT
[[ -z ${SHARED_MEMORY:-} ]] || files+=(-f deploy/compose.shared-memory.yaml)

say "building"
stack build --quiet
say "starting"
stack up --detach --wait --wait-timeout 180 --quiet-pull
address=$(stack port router 7411)
say "healthy; the router is at $address"
python -m baton.rpc.probe "$address" baton.v1.RouterService
python tools/compose_checks.py "$address" 1
gateway=http://$(stack port gateway 7480)
fetch "$gateway/v1/models" | grep '"object":"model"' >/dev/null
fetch "$gateway/console/" | grep '<title>' >/dev/null
say "the gateway lists the model and serves the console at $gateway"
if $own_engine; then check_stand_in; else check_console; fi

say "scaling prefill to two"
stack up --detach --wait --wait-timeout 180 --no-recreate --scale prefill=2
python tools/compose_checks.py "$address" 2

say "scaling prefill back to one"
stack up --detach --wait --wait-timeout 180 --no-recreate --scale prefill=1
python tools/compose_checks.py "$address" 1

if [[ -z ${KEEP:-} ]]; then
  say "taking it down"
  stack down --volumes --timeout 20
  check_nothing_left
fi
say "passed"
