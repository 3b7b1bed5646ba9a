#pragma once
// What attention_check.cu and plan_check.cu check on: device arrays, a cache of ragged sequences,
// how far outputs are from what is wanted, and the verdict.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/attention_reference.h"
#include "backend/cuda/kernels.h"

#define CUDA_OK(call)                                                             \
  do {                                                                            \
    const cudaError_t error_ = (call);                                            \
    if (error_ != cudaSuccess) {                                                  \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error_)); \
      std::exit(1);                                                               \
    }                                                                             \
  } while (0)

namespace polar::backend::cuda::check {
namespace {

template <typename T>
struct DeviceArray {
  T* data = nullptr;
  size_t size = 0;
  explicit DeviceArray(size_t n) : size(n) {
    CUDA_OK(cudaMalloc(&data, std::max<size_t>(1, n) * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) {
    CUDA_OK(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() { cudaFree(data); }
  DeviceArray(const DeviceArray&) = delete;
  void fill(int byte) { CUDA_OK(cudaMemset(data, byte, size * sizeof(T))); }
  std::vector<T> host() const {
    std::vector<T> out(size);
    CUDA_OK(cudaMemcpy(out.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
  }
};

/// Writes the valid tokens of each page; the rest keeps its poison.
__global__ void fill_kv(std::byte* kv, const int32_t* valid, int pages, int kv_heads, int head_dim,
                        DType type) {
  const int64_t per_page = static_cast<int64_t>(kv_heads) * 2 * kPageTokens * head_dim;
  for (int64_t i = blockIdx.x * int64_t{256} + threadIdx.x; i < pages * per_page;
       i += int64_t{gridDim.x} * 256) {
    const int page = static_cast<int>(i / per_page);
    int rest = static_cast<int>(i % per_page);
    const int dim = rest % head_dim;
    rest /= head_dim;
    const int token = rest % kPageTokens;
    rest /= kPageTokens;
    const int half = rest % 2, head = rest / 2;
    if (token >= valid[page]) continue;
    const int block = page * kv_heads + head;
    auto* at = kv + static_cast<int64_t>(block) * kv_block_bytes(head_dim) +
               half * kv_half_bytes(head_dim) + kv_element_offset(head_dim, token, dim);
    *reinterpret_cast<uint16_t*>(at) = to_bits(type, kv_value(block, half, token, dim));
  }
}

/// A cache of ragged sequences over shuffled pages, and the queries of `rows` rows.
struct Scene {
  int kv_heads, group, head_dim;
  DType type;
  std::vector<int> lengths;  // of the sequences
  int table_stride = 0, list_capacity = 0, page_count = 0;
  std::vector<int32_t> pages, valid;
  int list_begin() const { return static_cast<int>(lengths.size()) * table_stride; }

  Scene(std::mt19937& random, int kv_heads, int group, int head_dim, DType type,
        std::vector<int> lens, int list_capacity)
      : kv_heads(kv_heads),
        group(group),
        head_dim(head_dim),
        type(type),
        lengths(std::move(lens)),
        list_capacity(list_capacity) {
    for (int length : lengths) table_stride = std::max(table_stride, (length + 15) / 16 + 1);
    int used = 0;
    for (int length : lengths) used += (length + 15) / 16;
    page_count = used + 7;
    std::vector<int32_t> ids(page_count);
    for (int i = 0; i < page_count; ++i) ids[i] = i;
    std::shuffle(ids.begin(), ids.end(), random);
    pages.assign(list_begin() + list_capacity, page_count - 1);
    valid.assign(page_count, 0);
    int next = 0;
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (int page = 0; page * 16 < lengths[s]; ++page) {
        pages[s * table_stride + page] = ids[next];
        valid[ids[next++]] = std::min(16, lengths[s] - page * 16);
      }
    }
  }
  size_t kv_bytes() const {
    return static_cast<size_t>(page_count) * kv_heads * kv_block_bytes(head_dim);
  }
};

std::vector<float> make_queries(size_t count, uint32_t seed, std::vector<uint16_t>& bits) {
  std::vector<float> values(count);
  bits.resize(count);
  for (size_t i = 0; i < count; ++i) {
    bits[i] = to_bits(DType::kBF16, uniform(seed, static_cast<uint32_t>(i)) * 3.0f);
    values[i] = from_bits(DType::kBF16, bits[i]);
  }
  return values;
}

/// Relative error in the 2-norm over everything, and the largest over single heads' outputs.
struct Errors {
  double all = 0, worst = 0;
};
Errors compare(const std::vector<uint16_t>& out, const std::vector<std::vector<double>>& want,
               int head_dim) {
  double diff = 0, norm = 0;
  Errors e;
  for (size_t i = 0; i < want.size(); ++i) {
    double d2 = 0, n2 = 0;
    for (int d = 0; d < head_dim; ++d) {
      const double got = from_bits(DType::kBF16, out[i * head_dim + d]);
      d2 += (got - want[i][d]) * (got - want[i][d]);
      n2 += want[i][d] * want[i][d];
    }
    if (!(d2 <= 1e30)) d2 = 1e30;  // NaN
    diff += d2;
    norm += n2;
    e.worst = std::max(e.worst, n2 > 0 ? std::sqrt(d2 / n2) : d2);
  }
  e.all = norm > 0 ? std::sqrt(diff / norm) : diff;
  return e;
}

std::vector<int> random_lengths(std::mt19937& random, int count, int longest) {
  std::vector<int> out;
  const int edges[] = {1, 15, 16, 17, 32, 33, 255, 256, 257};
  for (int i = 0; i < count; ++i) {
    if (i % 3 == 0)
      out.push_back(edges[random() % 9]);
    else
      out.push_back(static_cast<int>(
                        std::exp(std::uniform_real_distribution<>(0, std::log(longest))(random))) +
                    1);
  }
  return out;
}

constexpr int kSkipped = 77;
bool has_gpu() {
  int devices = 0;
  const bool found =
      cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0 && code_version() >= 90;
  if (!found) std::printf("no GPU with bulk copies (sm_90): nothing was checked\n");
  return found;
}

int failures = 0;

std::vector<int32_t> blocks_of(const std::vector<ReadCount>& read) {
  std::vector<int32_t> blocks;
  for (const ReadCount& row : read) blocks.push_back(row.blocks);
  return blocks;
}

void report(const std::string& name, bool ok, double error) {
  std::printf("%-72s %s  %.2e\n", name.c_str(), ok ? "ok" : "FAILED", error);
  std::fflush(stdout);
  failures += !ok;
}

/// Says how it went; the exit code.
int verdict() {
  std::printf(failures == 0 ? "all right\n" : "%d FAILED\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace polar::backend::cuda::check
