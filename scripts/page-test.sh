#!/usr/bin/env bash
# make test-page: the page of polar serve in a headless Chromium, by keyboard (tests/e2e/page.py). Its own
# target, since a browser is a large thing to install for a test of everything else.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.cache/page-venv
if [ ! -x $venv/bin/python ]; then
  python3 -m venv $venv
  $venv/bin/pip install --quiet playwright || { rm -rf $venv; echo "page-test: pip could not install playwright" >&2; exit 1; }
fi
exec $venv/bin/python tests/e2e/page.py build/polar tests/golden/models/qwen3 "$@"
