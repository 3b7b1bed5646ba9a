#!/usr/bin/env bash
# The suite under AddressSanitizer and UndefinedBehaviorSanitizer; whatever uses threads under
# ThreadSanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-$(nproc)}
export POLAR_SANITIZED=1  # memory in use says nothing here (what was freed is held back), and long tests take fewer cases
cmake --preset asan --log-level=WARNING
cmake --build build-asan -j "$jobs"
ctest --test-dir build-asan --output-on-failure -j "$jobs"
cmake --preset tsan --log-level=WARNING
threaded="core backend backend_cpu cache engine serve"
cmake --build build-tsan -j "$jobs" --target $(printf 'polar_%s_test ' $threaded)
ctest --test-dir build-tsan --output-on-failure -j "$jobs" -R "^(${threaded// /|})[.][A-Z]"  # not the replays of corpora
