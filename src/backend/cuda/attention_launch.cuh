#pragma once
// Chooses the ring's depth and launches one instance of the decode kernel. Each head_dim has a
// source file of its own, so that they compile side by side.

#include "backend/cuda/attention_decode.cuh"
#include "backend/cuda/launch.cuh"

namespace polar::backend::cuda {

/// Ring slots per warp: about 128 KB in flight on a multiprocessor. More makes it no faster.
template <int D>
int decode_slots(int group, int wanted) {
  constexpr int kSharedBytes = 227 * 1024, kInFlight = 128 * 1024;  // of sm_90
  const int slot = DecodeShared<D>::ring(1);
  const int most = (kSharedBytes - DecodeShared<D>::bytes(0, group)) / slot;
  int slots = wanted > 0 ? wanted : kInFlight / slot;
  if (slots > most) slots = most;
  return slots < kMaxSlots ? slots : kMaxSlots;
}

template <int D, typename T, int NT, DecodeMode kMode = DecodeMode::kProduct>
cudaError_t launch_decode_instance(const DecodeAttention& args, cudaStream_t stream,
                                   int wanted_slots = 0, long long* timeline = nullptr) {
  const auto kernel = decode_attention_kernel<D, T, NT, kMode>;
  DecodeParams params{args, args.scale * 1.4426950408889634f,
                      decode_slots<D>(args.group, wanted_slots), timeline};
  const int bytes = DecodeShared<D>::bytes(params.slots, args.group);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  if (args.early)
    return launch_early(kernel, args.schedule.shares, decode_warps(D) * 32, bytes, stream, params);
  kernel<<<args.schedule.shares, decode_warps(D) * 32, bytes, stream>>>(params);
  return cudaGetLastError();
}

/// All instances of one head_dim.
template <int D>
cudaError_t launch_decode(const DecodeAttention& args, cudaStream_t stream) {
  const bool wide = args.group > 8;
  if (args.kv_dtype == DType::kF16) {
    return wide ? launch_decode_instance<D, __half, 2>(args, stream)
                : launch_decode_instance<D, __half, 1>(args, stream);
  }
  return wide ? launch_decode_instance<D, __nv_bfloat16, 2>(args, stream)
              : launch_decode_instance<D, __nv_bfloat16, 1>(args, stream);
}

extern template cudaError_t launch_decode<64>(const DecodeAttention&, cudaStream_t);
extern template cudaError_t launch_decode<80>(const DecodeAttention&, cudaStream_t);
extern template cudaError_t launch_decode<96>(const DecodeAttention&, cudaStream_t);
extern template cudaError_t launch_decode<128>(const DecodeAttention&, cudaStream_t);
extern template cudaError_t launch_decode<256>(const DecodeAttention&, cudaStream_t);

}  // namespace polar::backend::cuda
