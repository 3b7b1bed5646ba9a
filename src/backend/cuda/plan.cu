// Budgets (and router logits) to ranges and their schedule, in one block: a few microseconds for
// thousands of units.

#include "backend/cuda/launch.cuh"
#include "backend/cuda/plan.cuh"

namespace polar::backend::cuda {
namespace {

constexpr int kThreads = 1024;

__device__ __forceinline__ PageRanges unit_ranges(const PlanLaunch& p, int unit) {
  const int which = unit / p.kv_heads, head = unit % p.kv_heads;
  const PlanRow row = plan_row(p, which);
  const ReadKind kind = unit_kind(p, row, which, head);
  const bool summaries = row.budgets != nullptr && row.budgets[head].summaries;
  if (kind != ReadKind::kPages || p.list_capacity == 0)
    return fixed_ranges(kind, row.position, p.window, row.table_begin, row.limits, summaries);
  const PageChoice c = candidates_of(p, row, head);
  if (must_select(c) && p.read != nullptr) atomicAdd(&p.read[which].scored, c.count);
  return choice_ranges(c, row.position, p.window, row.table_begin, list_begin_of(p, unit),
                       summaries);
}

template <bool kFromBudgets>
__global__ void __launch_bounds__(kThreads) plan_kernel(const PlanLaunch p) {
  let_next_begin();
  wait_for_previous();
  if constexpr (kFromBudgets) {
    for (int unit = threadIdx.x; unit < p.rows * p.kv_heads; unit += kThreads)
      p.plan[unit] = unit_ranges(p, unit);
    __threadfence_block();
    __syncthreads();
  }
  build_schedule<kThreads>(p);
}

}  // namespace

cudaError_t launch_plan(const PlanLaunch& args, cudaStream_t stream, bool early) {
  if (!early) {
    plan_kernel<true><<<1, kThreads, 0, stream>>>(args);
    return cudaGetLastError();
  }
  return launch_early(plan_kernel<true>, 1, kThreads, 0, stream, args);
}

cudaError_t launch_schedule(const PlanLaunch& args, cudaStream_t stream) {
  return launch_early(plan_kernel<false>, 1, kThreads, 0, stream, args);
}

}  // namespace polar::backend::cuda
