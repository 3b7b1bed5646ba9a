// Plans without page selection: budgets (and router logits) to ranges and their schedule, in one
// block: a few microseconds for thousands of units.

#include "backend/cuda/launch.cuh"
#include "backend/cuda/plan.cuh"

namespace polar::backend::cuda {
namespace {

constexpr int kThreads = 1024;

template <bool kFromBudgets>
__global__ void __launch_bounds__(kThreads) plan_kernel(const PlanLaunch p) {
  let_next_begin();
  wait_for_previous();
  if constexpr (kFromBudgets) {
    const int units = p.rows * p.kv_heads;
    for (int unit = threadIdx.x; unit < units; unit += kThreads) {
      const int which = unit / p.kv_heads, head = unit % p.kv_heads;
      const PlanRow row = plan_row(p, which);
      p.plan[unit] = fixed_ranges(unit_kind(p, row, which, head), row.position, p.window,
                                  row.table_begin, row.limits);
    }
    __threadfence_block();
    __syncthreads();
  }
  build_schedule<kThreads>(p);
}

}  // namespace

cudaError_t launch_plan(const PlanLaunch& args, cudaStream_t stream) {
  return launch_early(plan_kernel<true>, 1, kThreads, 0, stream, args);
}

cudaError_t launch_schedule(const PlanLaunch& args, cudaStream_t stream) {
  return launch_early(plan_kernel<false>, 1, kThreads, 0, stream, args);
}

}  // namespace polar::backend::cuda
