// Indices of the pages that prefill rows fill.

#include "backend/cuda/head_dim.cuh"
#include "backend/cuda/page_index.cuh"

namespace polar::backend::cuda {
namespace {

template <int D, PageScore kScore>
__global__ void __launch_bounds__(kIndexThreads) page_index_kernel(const PageIndex index) {
  write_page_index<D, kScore>(index, blockIdx.x, blockIdx.y);
}

}  // namespace

cudaError_t launch_page_index(const PageIndex& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  return with_head_dim(args.head_dim, [&](auto d) {
    auto kernel = page_index_kernel<d.value, PageScore::kMean>;
    if (args.score == PageScore::kCodes) kernel = page_index_kernel<d.value, PageScore::kCodes>;
    kernel<<<dim3(args.rows, args.kv_heads), kIndexThreads, 0, stream>>>(args);
    return cudaGetLastError();
  });
}

}  // namespace polar::backend::cuda
