#pragma once
// What scoring and selecting pages share.

#include "backend/cuda/plan.cuh"

namespace polar::backend::cuda {

/// Entries of one head's scores: the pages of a table, a multiple of four for 16-byte loads.
__host__ __device__ inline int score_stride(int table_stride) {
  return (table_stride + 3) / 4 * 4;
}

/// scores[unit][head][page] = the index's score * scale, in units of log2, of the pages that are
/// candidates; one node.
cudaError_t launch_page_scores(const PageSelection& args, cudaStream_t stream);

}  // namespace polar::backend::cuda
