#include "backend/cpu/cpu_device.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>

#include "backend/cpu/cpu_weight.h"
#include "backend/cpu/isa.h"
#include "backend/traced_ops.h"

namespace polar::backend {

Result<std::unique_ptr<Device>> make_cpu_device(const CpuOptions& options) {
  POLAR_ASSIGN(const cpu::Kernels* kernels, cpu::choose_kernels());
  return std::unique_ptr<Device>(new cpu::CpuDevice(*kernels, options.threads));
}

namespace cpu {

namespace {

/// Memory that can be had without swapping, by /proc/meminfo.
size_t available_memory() {
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);) {
    size_t kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %zu kB", &kib) == 1) return kib * 1024;
  }
  return static_cast<size_t>(sysconf(_SC_AVPHYS_PAGES)) *
         static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

DeviceInfo CpuDevice::info() const {
  DeviceInfo info;
  info.name = fmt::format("cpu ({}, {} thread{})", kernels_.name, pool_.threads(),
                          pool_.threads() == 1 ? "" : "s");
  info.memory_bytes =
      static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  info.free_bytes = available_memory();
  return info;
}

Result<Buffer> CpuDevice::allocate(size_t bytes, const char* purpose) {
  const size_t free_bytes = available_memory();
  const bool large = bytes >= 4 * kHugePage;
  const size_t alignment = large ? kHugePage : kAlignment;
  const size_t rounded = (std::max<size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  void* data = bytes <= free_bytes ? std::aligned_alloc(alignment, rounded) : nullptr;
  if (data == nullptr) {
    return bad_input("memory", purpose, fmt::format("{} MiB free", free_bytes >> 20),
                     fmt::format("{} MiB", (bytes >> 20) + 1));
  }
  // Attention walks scattered pages: with 4 KiB pages of the system every block would miss the TLB.
  if (large) madvise(data, rounded, MADV_HUGEPAGE);
  return Buffer(this, data, bytes);
}

void CpuDevice::free(void* data) {
  std::free(data);
}
void CpuDevice::upload(void* destination, const void* source, size_t bytes) {
  if (bytes > 0) std::memcpy(destination, source, bytes);
}
void CpuDevice::download(void* destination, const void* source, size_t bytes) {
  if (bytes > 0) std::memcpy(destination, source, bytes);
}
void CpuDevice::fill_zero(void* destination, size_t bytes) {
  std::memset(destination, 0, bytes);
}

std::vector<VerbCost> CpuDevice::trace(const std::function<void()>& step) {
  using Clock = std::chrono::steady_clock;
  std::vector<std::pair<const char*, Clock::time_point>> marks;
  TracedOps traced(ops_, [&](const char* verb) { marks.emplace_back(verb, Clock::now()); });
  active_ = &traced;
  step();
  active_ = &ops_;
  marks.emplace_back("end", Clock::now());
  std::vector<VerbCost> costs;
  for (size_t i = 0; i + 1 < marks.size(); ++i) {
    const std::chrono::duration<double> seconds = marks[i + 1].second - marks[i].second;
    add_cost(costs, {marks[i].first, 1, 0, seconds.count()});
  }
  return costs;
}

Result<std::unique_ptr<Weight>> CpuDevice::prepare(const WeightSource& source) {
  return CpuWeight::prepare(source);
}

Result<std::unique_ptr<Weight>> CpuDevice::dummy(int64_t rows, int64_t columns, DType dtype,
                                                 bool gather_columns, uint64_t seed) {
  const size_t bytes = dtype_bytes(dtype, static_cast<size_t>(rows) * columns);
  if (bytes > available_memory()) {
    return bad_input("memory", "dummy weights",
                     fmt::format("{} MiB free", available_memory() >> 20),
                     fmt::format("{} MiB for one matrix (a smaller --dummy shape)", bytes >> 20));
  }
  return CpuWeight::dummy(rows, columns, dtype, gather_columns, seed);
}

double CpuDevice::measure_read_bandwidth() {
  constexpr size_t kBytes = size_t{512} << 20;
  constexpr size_t kPiece = size_t{1} << 20;
  auto buffer = allocate(kBytes, "measuring the read bandwidth");
  if (!buffer.ok()) return 0;
  const auto* data = buffer->as<std::byte>();
  std::memset(buffer->data(), 1, kBytes);
  double best = 0;
  std::vector<float> sums(pool_.threads() * 16);
  for (int round = 0; round < 6; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    pool_.parallel_for(kBytes / kPiece, 4, [&](int64_t from, int64_t to, int thread) {
      sums[thread * 16] += kernels_.read(data + from * kPiece, (to - from) * kPiece);
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, static_cast<double>(kBytes) / seconds.count());
  }
  return best;
}

}  // namespace cpu
}  // namespace polar::backend
