#include "backend/cuda/attention_launch.cuh"

namespace polar::backend::cuda {
template cudaError_t launch_decode<96>(const DecodeAttention&, cudaStream_t);
}  // namespace polar::backend::cuda
