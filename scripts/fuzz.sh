#!/usr/bin/env bash
# Runs every libFuzzer target for POLAR_FUZZ_SECONDS (default 60), starting from its corpus. A crash stops
# the run and leaves its input in build-fuzz; so does an input that takes a minute. (A chat template may take its two
# million steps: 10 seconds with sanitizers on an idle core.)
set -euo pipefail
cd "$(dirname "$0")/.."
cmake --preset fuzz --log-level=WARNING
stems=$(find src -name '*_fuzz.cc' -exec basename {} .cc \; | sort)
cmake --build build-fuzz -j "${JOBS:-$(nproc)}" --target $(printf 'polar_%s ' $stems)
cd build-fuzz
for stem in $stems; do
  mkdir -p "found/$stem"
  echo "== $stem"
  "$(find . -name "polar_$stem" -type f)" -max_total_time="${POLAR_FUZZ_SECONDS:-60}" -timeout=60 -rss_limit_mb=4096 -verbosity=0 -print_funcs=0 \
    "found/$stem" "../tests/corpus/$stem"
done
