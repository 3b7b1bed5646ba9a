#!/usr/bin/env bash
# The suite under AddressSanitizer and UndefinedBehaviorSanitizer; whatever uses threads under
# ThreadSanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=$(nproc)
export POLAR_SANITIZED=1  # tests of memory use say nothing here: sanitizers hold back what was freed
cmake --preset asan --log-level=WARNING
cmake --build build-asan -j "$jobs"
ctest --test-dir build-asan --output-on-failure -j "$jobs"
cmake --preset tsan --log-level=WARNING
cmake --build build-tsan -j "$jobs"
ctest --test-dir build-tsan --output-on-failure -j "$jobs" -R '^(core|backend|cache|engine|serve)'
