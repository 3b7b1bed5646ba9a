#include "backend/cuda/attention_launch.cuh"
#include "backend/cuda/head_dim.cuh"

namespace polar::backend::cuda {
namespace {

/// Counts and partials lie one behind the other, each on a 256-byte boundary.
size_t aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

}  // namespace

size_t attention_scratch_bytes(int units, int shares, int group, int head_dim) {
  const size_t partials = static_cast<size_t>(shares) * 2 * group;
  return aligned(units * sizeof(int32_t)) + aligned(partials * sizeof(float2)) +
         partials * head_dim * sizeof(float);
}

AttentionScratch attention_scratch_at(void* memory, int units, int shares, int group) {
  auto* bytes = static_cast<std::byte*>(memory);
  const size_t sums = aligned(units * sizeof(int32_t));
  const size_t partial = sums + aligned(static_cast<size_t>(shares) * 2 * group * sizeof(float2));
  return {static_cast<int32_t*>(memory), reinterpret_cast<float*>(bytes + partial),
          reinterpret_cast<float*>(bytes + sums)};
}

int attention_shares() {
  int device = 0, processors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return processors;
}

bool attention_supported(DType kv_dtype, int head_dim, int group) {
  const bool typed = kv_dtype == DType::kBF16 || kv_dtype == DType::kF16;
  const bool shaped = with_head_dim(head_dim, [](auto) { return cudaSuccess; }) == cudaSuccess;
  return code_version() >= 90 && typed && shaped && group >= 1 && group <= 16;
}

cudaError_t launch_decode_attention(const DecodeAttention& args, cudaStream_t stream) {
  if (!attention_supported(args.kv_dtype, args.head_dim, args.group)) return cudaErrorInvalidValue;
  return with_head_dim(args.head_dim, [&](auto d) { return launch_decode<d.value>(args, stream); });
}

}  // namespace polar::backend::cuda
