// Products by stored type and rows of x on one thread: bytes per second beside the machine's read
// bandwidth, and multiply-adds beside its arithmetic peak, both measured here with the same thread.
// Time is this thread's own CPU time, so that a busy machine disturbs it less.

#include <benchmark/benchmark.h>

#include <algorithm>

#include "backend/cpu/isa.h"
#include "backend/cpu/test_values.h"

namespace polar::backend::cpu {
namespace {

constexpr int64_t kOutputs = 2048, kInputs = 2048;
constexpr size_t kFootprint = size_t{192} << 20;  // well beyond the last cache level

void matmul_bench(benchmark::State& state, DType dtype) {
  const Kernels& kernels = **choose_kernels();
  const int rows = static_cast<int>(state.range(0));
  std::mt19937 random(1);
  const StoredMatrix one = random_matrix(random, dtype, kOutputs, kInputs);
  const size_t matrix_bytes = one.stored.size();
  const size_t copies = rows > 16 ? 1 : kFootprint / matrix_bytes;
  std::vector<std::byte> weights(copies * matrix_bytes);
  for (size_t i = 0; i < copies; ++i)
    std::copy(one.stored.begin(), one.stored.end(), weights.begin() + i * matrix_bytes);
  const std::vector<float> x = random_values(random, rows * kInputs);
  std::vector<float> y(rows * kOutputs);
  std::vector<std::byte> packed(rows * kernels.packed_bytes(dtype, kInputs));
  size_t copy = 0;
  for (auto _ : state) {
    if (!packed.empty())
      kernels.pack({x.data(), kInputs, rows, kInputs, dtype, 0, rows, packed.data()});
    kernels.matmul({x.data(), kInputs, packed.data(), rows, weights.data() + copy * matrix_bytes,
                    one.row_bytes, dtype, kInputs, nullptr, 0, kOutputs, nullptr, y.data(),
                    kOutputs});
    benchmark::DoNotOptimize(y.data());
    copy = (copy + 1) % copies;
  }
  const auto runs = static_cast<double>(state.iterations());
  state.counters["bytes/s"] =
      benchmark::Counter(runs * static_cast<double>(matrix_bytes), benchmark::Counter::kIsRate);
  state.counters["flop/s"] =
      benchmark::Counter(runs * 2.0 * rows * kOutputs * kInputs, benchmark::Counter::kIsRate);
}

void read_bench(benchmark::State& state) {
  const Kernels& kernels = **choose_kernels();
  const std::vector<std::byte> data(kFootprint, std::byte{1});
  for (auto _ : state) benchmark::DoNotOptimize(kernels.read(data.data(), data.size()));
  state.counters["bytes/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * static_cast<double>(kFootprint),
                         benchmark::Counter::kIsRate);
}

void peak_bench(benchmark::State& state) {
  const Kernels& kernels = **choose_kernels();
  constexpr int64_t kRounds = 1 << 20;
  for (auto _ : state) benchmark::DoNotOptimize(kernels.flops(kRounds));
  state.counters["flop/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * 2.0 * 12 * kernels.lanes * kRounds,
      benchmark::Counter::kIsRate);
}

BENCHMARK(read_bench);
BENCHMARK(peak_bench);
#define POLAR_MATMUL_BENCH(name) \
  BENCHMARK_CAPTURE(matmul_bench, name, DType::name)->Arg(1)->Arg(2)->Arg(4)->Arg(8)->Arg(128)
POLAR_MATMUL_BENCH(kF32);
POLAR_MATMUL_BENCH(kF16);
POLAR_MATMUL_BENCH(kBF16);
POLAR_MATMUL_BENCH(kQ8_0);
POLAR_MATMUL_BENCH(kQ4_0);
POLAR_MATMUL_BENCH(kQ4_1);

}  // namespace
}  // namespace polar::backend::cpu

BENCHMARK_MAIN();
