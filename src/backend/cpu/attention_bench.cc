// Attention alone, on pages scattered over a pool that no cache holds: decode steps of 8 sequences
// with 4,096 tokens each, as shares of what this machine's memory gives and of what its arithmetic
// units do, both measured between the steps; steps that read only some pages, against the ideal by
// bytes; prefill of one prompt. Every number is a median over rounds.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "backend/cpu/attention_fixture.h"
#include "backend/cpu/cpu_device.h"
#include "backend/cpu/isa.h"

namespace polar::backend::cpu {
namespace {

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Machine {
  CpuDevice device;
  Buffer memory;
  std::span<std::byte> buffer;

  Machine(const Kernels& kernels, int threads) : device(kernels, threads) {
    constexpr size_t kBytes = size_t{256} << 20;
    auto allocated = device.allocate(kBytes, "measuring the read bandwidth");
    POLAR_CHECK(allocated.ok());
    memory = std::move(allocated).value();
    buffer = {memory.as<std::byte>(), kBytes};
    std::memset(buffer.data(), 1, kBytes);
  }

  /// Bytes per second over a buffer beyond the caches.
  double bandwidth() {
    constexpr size_t kPiece = size_t{1} << 20;
    float sums[1024] = {};
    const double seconds = seconds_of([&] {
      device.pool().parallel_for(buffer.size() / kPiece, 4, [&](int64_t from, int64_t to, int t) {
        sums[t % 64 * 16] +=
            device.kernels().read(buffer.data() + from * kPiece, (to - from) * kPiece);
      });
    });
    return static_cast<double>(buffer.size()) / seconds;
  }

  /// Floating-point operations per second, a multiply-add counting two.
  double peak() {
    constexpr int64_t kRounds = 1'000'000;
    const int threads = device.pool().threads();
    const double seconds = seconds_of([&] {
      device.pool().parallel_for(threads, 1, [&](int64_t from, int64_t to, int) {
        for (; from < to; ++from) device.kernels().flops(kRounds);
      });
    });
    return 24.0 * device.kernels().lanes * kRounds * threads / seconds;
  }
};

constexpr int kSequences = 8;
constexpr int kContext = 4096;
constexpr int kLayers = 3;  // in turn, so that no cache holds what the next step reads

std::unique_ptr<PagedCache> make_cache(DType dtype, int kv_heads, int head_dim,
                                       const std::vector<int>& lengths, std::mt19937& random) {
  auto cache = std::make_unique<PagedCache>(CacheShape{dtype, kLayers, kv_heads, head_dim, 500},
                                            lengths, random);
  return cache;
}

/// Every unit reads `share` of its sequence's full pages: chosen at random, in order, as lists.
void plan_lists(AttentionStep& step, double share, std::mt19937& random) {
  const Batch& batch = step.batch();
  int next = 0;
  for (int row = 0; row < batch.planned_rows(); ++row) {
    for (int head = 0; head < step.cache().view().kv_heads; ++head) {
      std::vector<int> logical(batch.position[row] / kPageTokens);
      std::iota(logical.begin(), logical.end(), 0);
      std::shuffle(logical.begin(), logical.end(), random);
      logical.resize(static_cast<size_t>(share * static_cast<double>(logical.size())));
      std::sort(logical.begin(), logical.end());
      PageRanges& unit = step.unit(row, head);
      const int32_t own =
          batch.sequence[row] * batch.table_stride + batch.position[row] / kPageTokens;
      unit = {batch.list_begin() + next, static_cast<int32_t>(logical.size()), own, 1};
      for (int page : logical) step.lists()[next++] = step.cache().page(row, page);
    }
  }
}

int64_t blocks_read(AttentionStep& step) {
  int64_t blocks = 0;
  for (int row = 0; row < step.batch().planned_rows(); ++row)
    for (int head = 0; head < step.cache().view().kv_heads; ++head)
      blocks += step.unit(row, head).count + step.unit(row, head).tail_count;
  return blocks;
}

void decode(Machine& machine, DType dtype, int kv_heads, int group, int head_dim, int rounds) {
  std::mt19937 random(7);
  const std::vector<int> lengths(kSequences, kContext);
  const auto cache = make_cache(dtype, kv_heads, head_dim, lengths, random);
  std::vector<Chunk> rows;
  for (int s = 0; s < kSequences; ++s) rows.push_back({s, kContext - 1, 1});
  struct Plan {
    const char* name;
    double share;
    std::unique_ptr<AttentionStep> step;
    double bytes = 0;
    std::vector<double> seconds, of_bandwidth, of_peak, of_ideal;
  };
  Plan plans[4] = {{"dense", 1, nullptr, 0, {}, {}, {}, {}},
                   {"50 %", 0.5, nullptr, 0, {}, {}, {}, {}},
                   {"25 %", 0.25, nullptr, 0, {}, {}, {}, {}},
                   {"window", 0, nullptr, 0, {}, {}, {}, {}}};
  for (Plan& plan : plans) {
    plan.step =
        std::make_unique<AttentionStep>(*cache, group, std::vector<Chunk>{}, rows,
                                        kSequences * kv_heads * kContext / kPageTokens, random);
    const Batch& batch = plan.step->batch();
    for (int row = 0; row < batch.rows; ++row) {
      const int32_t table = batch.sequence[row] * batch.table_stride;
      for (int head = 0; head < kv_heads; ++head) {
        plan.step->unit(row, head) = plan.share == 1
                                         ? full_ranges(batch.position[row], 0, table)
                                         : window_ranges(batch.position[row], 0, table, {1, 4});
      }
    }
    if (plan.share == 0.5 || plan.share == 0.25) plan_lists(*plan.step, plan.share, random);
    plan.bytes = static_cast<double>(blocks_read(*plan.step) * cache->view().block_bytes());
  }
  Ops& ops = machine.device.ops();
  int layer = 0;
  for (int round = 0; round < rounds; ++round) {
    const double bandwidth = machine.bandwidth(), peak = machine.peak();
    for (Plan& plan : plans) {
      const int repeats = plan.share == 0 ? 4 * kLayers : kLayers;
      const double seconds = seconds_of([&] {
                               for (int i = 0; i < repeats; ++i)
                                 ops.attention(plan.step->args(layer++ % kLayers, 0));
                             }) /
                             repeats;
      const double flops = plan.bytes / (dtype == DType::kF32 ? 4 : 2) * 2 * group;
      plan.seconds.push_back(seconds);
      plan.of_bandwidth.push_back(plan.bytes / seconds / bandwidth);
      plan.of_peak.push_back(flops / seconds / peak);
      plan.of_ideal.push_back(plans[0].seconds.back() * plan.bytes / plans[0].bytes / seconds);
    }
  }
  for (const Plan& plan : plans) {
    std::printf("| %s | %d x %d | %d | %s | %.2f | %.1f | %.0f %% | %.0f %% | %.2f |\n",
                std::string(dtype_info(dtype).name).c_str(), kv_heads, group, head_dim, plan.name,
                median(plan.seconds) * 1e3, plan.bytes / median(plan.seconds) / 1e9,
                median(plan.of_bandwidth) * 100, median(plan.of_peak) * 100, median(plan.of_ideal));
  }
  std::fflush(stdout);
}

/// Seven sequences of 256 tokens, one of 25,600: it takes as long as its bytes if all threads share
/// it.
void ragged(Machine& machine, int rounds) {
  std::mt19937 random(8);
  std::vector<int> lengths(kSequences, 256);
  lengths.back() = 25600;
  const auto cache = make_cache(DType::kF16, 8, 64, lengths, random);
  std::vector<Chunk> rows;
  for (int s = 0; s < kSequences; ++s) rows.push_back({s, lengths[s] - 1, 1});
  AttentionStep step(*cache, 1, {}, rows, 0, random);
  const Batch& batch = step.batch();
  for (int row = 0; row < batch.rows; ++row)
    for (int head = 0; head < 8; ++head)
      step.unit(row, head) = full_ranges(batch.position[row], 0, row * batch.table_stride);
  const double bytes = static_cast<double>(blocks_read(step) * cache->view().block_bytes());
  std::vector<double> of_bandwidth;
  for (int round = 0; round < rounds; ++round) {
    const double bandwidth = machine.bandwidth();
    const double seconds = seconds_of([&] {
                             for (int layer = 0; layer < kLayers; ++layer)
                               machine.device.ops().attention(step.args(layer, 0));
                           }) /
                           kLayers;
    of_bandwidth.push_back(bytes / seconds / bandwidth);
  }
  std::printf("\none sequence 100 times longer than 7 others: %.0f %% of the read bandwidth\n",
              median(of_bandwidth) * 100);
}

void prefill(Machine& machine, int kv_heads, int group, int head_dim, int tokens, int rounds) {
  std::mt19937 random(9);
  const auto cache = make_cache(DType::kF16, kv_heads, head_dim, {tokens}, random);
  AttentionStep step(*cache, group, {{0, 0, tokens}}, {}, 0, random);
  const double flops = 4.0 * head_dim * kv_heads * group * tokens * (tokens + 1) / 2;
  std::vector<double> of_peak, milliseconds;
  for (int round = 0; round < rounds; ++round) {
    const double peak = machine.peak();
    const double seconds =
        seconds_of([&] { machine.device.ops().attention(step.args(round % kLayers, 0)); });
    of_peak.push_back(flops / seconds / peak);
    milliseconds.push_back(seconds * 1e3);
  }
  std::printf("| prefill %d | %d x %d | %d | %.2f | %.0f %% |\n", tokens, kv_heads, group, head_dim,
              median(milliseconds), median(of_peak) * 100);
}

int run(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 9;
  const std::string only = argc > 3 ? argv[3] : "";
  const auto kernels = choose_kernels();
  if (!kernels.ok()) {
    std::fprintf(stderr, "%s\n", kernels.error().message.c_str());
    return 2;
  }
  Machine machine(**kernels, threads);
  std::printf("%s; %.1f GB/s read, %.0f GFLOP/s; batch %d, context %d\n\n",
              machine.device.info().name.c_str(), machine.device.measure_read_bandwidth() / 1e9,
              machine.peak() / 1e9, kSequences, kContext);
  if (only.empty() || only == "decode") {
    std::printf(
        "| KV | KV heads x group | head_dim | pages | ms | GB/s | of read bandwidth | of FMA "
        "peak | of ideal by bytes |\n|---|---|---|---|---|---|---|---|---|\n");
    for (DType dtype : {DType::kF16, DType::kBF16})
      for (int head_dim : {64, 128})
        for (int group : {1, 2, 3, 4, 7, 8}) decode(machine, dtype, 4, group, head_dim, rounds);
    ragged(machine, rounds);
  }
  if (only.empty() || only == "prefill") {
    std::printf(
        "\n| prompt | KV heads x group | head_dim | ms | of FMA peak |\n|---|---|---|---|---|\n");
    prefill(machine, 3, 3, 64, 512, rounds);
    prefill(machine, 3, 3, 64, 2048, rounds);
    prefill(machine, 8, 1, 64, 1024, rounds);
    prefill(machine, 4, 8, 128, 1024, rounds);
  }
  return 0;
}

}  // namespace
}  // namespace polar::backend::cpu

int main(int argc, char** argv) {
  return polar::backend::cpu::run(argc, argv);
}
