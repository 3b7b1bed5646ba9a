#!/usr/bin/env bash
# Builds, tests and measures on a GPU machine, also a bare one (CUDA 13, g++, CMake, Ninja, PyTorch; no
# package manager: take vendor/ along, see scripts/vendor.sh). Each stage ends within 10 minutes and
# appends JSON lines to $RESULTS (default build/gpu-check.jsonl).
# usage: scripts/gpu-check.sh STAGE...
#   build | test | sanitize | races | attention | pages | prefill | products | mlp | e2e ROW... | peers ROW... | report
#   ROW: model:batch:context[:density[:mean|codes][:neurons]], e.g. llama-2-7b:48:3968:0.5 (random heads, the others
#   nothing), llama-2-7b:48:3968:0.25:codes (a quarter of each head's pages, scored by codes) or opt-6.7b:64:1920:0.5::0.623
#   (of 62.3 % of the neurons, which routers choose)
set -euo pipefail
cd "$(dirname "$0")/.."
results=${RESULTS:-build/gpu-check.jsonl}
binaries=${POLAR_BUILD:-build}
rows=(llama-2-7b:1:3968 llama-2-7b:16:3968:0.5 llama-2-7b:48:3968:0.5 llama-3.1-8b:64:8192:0.5 opt-6.7b:64:1920:0.5)

find_binary() { find "$binaries" -name "$1" -type f -perm -u+x | head -n 1; }
stamp() { sed "s/^{/{\"time\":\"$(date -u +%FT%TZ)\",/" | tee -a "$results"; }

stage_build() {
  local vendor=()
  [ -d vendor ] && vendor=(-DPOLAR_VENDOR="$PWD/vendor")
  cmake --preset release -DPOLAR_CUDA=ON -DPOLAR_TESTS=OFF -DPOLAR_BENCHMARKS=OFF -DPOLAR_GPU_CHECKS=ON "${vendor[@]}"
  cmake --build build --target polar polar_cuda_test polar_attention_check polar_plan_check polar_mlp_bench polar_product_bench \
    polar_attention_bench
}
stage_test() {
  local program
  for program in polar_cuda_test polar_plan_check polar_attention_check; do
    timeout 280 "$(find_binary $program)" | grep -v ' ok$' || { echo "gpu-check: $program failed" >&2; return 1; }
  done
}
stage_sanitize() {
  timeout 580 compute-sanitizer --tool memcheck --error-exitcode 1 "$(find_binary polar_cuda_test)" | grep -E '=====|wrong'
}
# Without prefill, whose barriers racecheck does not understand (docs/kernels.md).
stage_races() {
  timeout 280 compute-sanitizer --tool racecheck --error-exitcode 1 --kernel-name-exclude kns=prefill \
    "$(find_binary polar_attention_check)" --small | grep -E '=====|wrong'
  timeout 280 compute-sanitizer --tool racecheck --error-exitcode 1 "$(find_binary polar_plan_check)" | grep -E '=====|wrong'
}
stage_attention() { timeout 590 python3 bench/attention.py "$(find_binary polar_attention_bench)" "${results%.jsonl}-attention.json" dense heads skew; }
stage_pages() { timeout 590 python3 bench/attention.py "$(find_binary polar_attention_bench)" "${results%.jsonl}-pages.json" pages; }
stage_prefill() { timeout 590 python3 bench/attention.py "$(find_binary polar_attention_bench)" "${results%.jsonl}-prefill.json" prefill; }
stage_products() { timeout 590 "$(find_binary polar_product_bench)" | stamp; }
stage_mlp() { timeout 590 "$(find_binary polar_mlp_bench)" | stamp; }
stage_e2e() {
  local row model batch context density score neurons policy
  for row in "$@"; do
    IFS=: read -r model batch context density score neurons <<<"$row"
    policy=()
    [ -z "$density" ] || policy=(--policy random --density "$density" --fallback none)
    [ -z "$score" ] || policy=(--policy pages --pages "$density" --page-score "$score")
    [ -z "$neurons" ] || policy+=(--neuron-share "$neurons")
    timeout 300 "$(find_binary polar)" bench --dummy "$model" --device cuda --batch "$batch" --context "$context" --decode 20 \
      --format json "${policy[@]}" |
      python3 -c '
import json, sys
for row in json.load(sys.stdin):
    print(json.dumps({"bench": "step", **row, "density": float(sys.argv[1] or 1)}, separators=(",", ":")))' "$density" | stamp
  done
}
stage_peers() {
  local row model batch context rest
  for row in "$@"; do
    IFS=: read -r model batch context rest <<<"$row"
    timeout 300 python3 bench/peers/dense_step.py "$model" "$batch" "$context" 2>/dev/null | stamp
  done
}
stage_report() {
  python3 - "$results" <<'PY'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1]) if line.startswith("{")]
peer = {(r["model"], r["batch"], r["context"]): r["decode_step_ms"] for r in rows if r["bench"] == "peer_step"}
print("| model | batch | context | point | density | ms | peer dense ms | over peer | share of floor |\n|" + "---|" * 9)
for r in rows:
    if r["bench"] != "step":
        continue
    p = peer.get((r["model"], r["batch"], r["context"]))
    print("| {} | {} | {} | {} | {:.3f} | {:.3f} | {} | {} | {:.3f} |".format(
        r["model"], r["batch"], r["context"], r["point"], r.get("effective_density", 1), r["decode_step_ms"],
        f"{p:.3f}" if p else "", f"{p / r['decode_step_ms']:.2f}" if p else "", r["bandwidth_share"]))
print("\n| MLP | batch | neurons | dense us | sparse us | speedup | TB/s | router us |\n|" + "---|" * 8)
for r in rows:
    if r["bench"] == "mlp":
        print("| {hidden} x {ffn} | {batch} | {neurons} | {dense_us} | {sparse_us} | {speedup} | {sparse_tb_per_s} | {router_us} |".format(**r))
PY
}

[ $# -gt 0 ] || { sed -n '2,8p' "$0"; exit 2; }
mkdir -p "$(dirname "$results")"
while [ $# -gt 0 ]; do
  stage=$1
  shift
  arguments=()
  if [ "$stage" = e2e ] || [ "$stage" = peers ]; then
    while [ $# -gt 0 ] && [[ "$1" == *:* ]]; do arguments+=("$1"); shift; done
    [ ${#arguments[@]} -gt 0 ] || arguments=("${rows[@]}")
  fi
  declare -F "stage_$stage" >/dev/null || { echo "gpu-check: no stage '$stage'" >&2; exit 2; }
  echo "gpu-check: $stage" >&2
  "stage_$stage" "${arguments[@]}"
done
