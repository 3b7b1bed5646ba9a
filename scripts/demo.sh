#!/usr/bin/env bash
# make demo: builds the product, fetches a real model, answers a batch of prompts densely and sparsely,
# and says what that did to speed, bytes and quality.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh demo
cmake --preset release --log-level=WARNING
cmake --build build --target polar -j "$(nproc)"
model="${POLAR_MODEL:-$(scripts/fetch-demo-model.sh)}"
# The shipped profile belongs to the model that the demo fetches; for another one every head reads sink and window.
profile=()
if [ -z "${POLAR_MODEL:-}" ] && [[ " $* " != *" --profile"* ]]; then
  profile=(--profile profiles/SmolLM2-135M-Instruct --point 1%)
fi
exec build/polar demo "$model" --text examples/alice.txt "${profile[@]}" "$@"
