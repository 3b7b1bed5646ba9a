#!/usr/bin/env bash
# Runs every libFuzzer target for POLAR_FUZZ_SECONDS (default 60), starting from its corpus. A crash stops
# the run and leaves its input in build-fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake --preset fuzz --log-level=WARNING
cmake --build build-fuzz -j "$(nproc)"
cd build-fuzz
find . -type f -executable -name 'polar_*_fuzz' | sort | while read -r target; do
  stem=$(basename "$target" | sed 's/^polar_//')
  mkdir -p "found/$stem"
  echo "== $stem"
  "$target" -max_total_time="${POLAR_FUZZ_SECONDS:-60}" -timeout=10 -rss_limit_mb=4096 -verbosity=0 \
    "found/$stem" "../tests/corpus/$stem"
done
