#include "backend/cpu/cpu_ops.h"
#include "backend/ranges.h"

namespace polar::backend::cpu {

void CpuOps::plan(const PlanArgs& args) {
  const Batch& batch = *args.batch;
  const int kv_heads = args.kv.kv_heads;
  for (int planned = 0; planned < batch.planned_rows(); ++planned) {
    const int row = batch.prefill_rows + planned;
    const int32_t position = batch.position[row];
    const int32_t table_begin = batch.sequence[row] * batch.table_stride;
    const PageRanges full = full_ranges(position, args.window, table_begin);
    for (int head = 0; head < kv_heads; ++head) {
      PageRanges& unit = args.plan.units[planned * kv_heads + head];
      unit = full;
      if (args.budgets != nullptr) {
        const int point = batch.point[row];
        const UnitBudget& budget = args.budgets[point * kv_heads + head];
        const PointLimits& limits = args.limits[point];
        switch (budget.kind) {
          case ReadKind::kFull:
            break;
          case ReadKind::kNone:
            unit = {};
            break;
          case ReadKind::kWindow:
            unit = window_ranges(position, args.window, table_begin, limits.sink, limits.recent);
            break;
          case ReadKind::kPages:
          case ReadKind::kRouted:
            POLAR_CHECK(!"a budget kind that this backend plans");
            break;
        }
      }
      args.plan.pages_read[planned] += unit.count + unit.tail_count;
    }
  }
}

}  // namespace polar::backend::cpu
