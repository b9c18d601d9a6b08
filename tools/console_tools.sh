#!/usr/bin/env bash
# Installs what shows and measures a mesh from outside, where Debian's packages can be had: headless
# Chromium (tests of the console, screenshots) and Prometheus (test of every dashboard's query).
# Tests that need one of them are skipped where it is missing; without root or apt nothing happens.
set -euo pipefail

missing=()
command -v chromium >/dev/null || missing+=(chromium)
command -v prometheus >/dev/null || missing+=(prometheus)
if ((${#missing[@]} == 0)); then
  exit 0
fi
if ! command -v apt-get >/dev/null || ((EUID != 0)); then
  echo "console_tools: ${missing[*]} missing and cannot be installed here; their tests are skipped"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
  >/tmp/console_tools.log 2>&1; then
  tail -5 /tmp/console_tools.log
  echo "console_tools: ${missing[*]} could not be installed; their tests are skipped"
fi
