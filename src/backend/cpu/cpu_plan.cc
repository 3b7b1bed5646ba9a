// What each unit reads: budgets to page ranges, routed units by their logits, and the best pages of
// those that choose.

#include <algorithm>

#include "backend/cpu/cpu_ops.h"
#include "backend/ranges.h"

namespace polar::backend::cpu {

PageRanges CpuOps::chosen_pages(const PlanArgs& args, int planned, int kv_head, int thread) {
  const Batch& batch = *args.batch;
  const KvView& kv = args.kv;
  const int row = batch.prefill_rows + planned, unit = planned * kv.kv_heads + kv_head;
  const int32_t position = batch.position[row], point = batch.point[row];
  const int32_t table_begin = batch.sequence[row] * batch.table_stride;
  const PointLimits& limits = args.limits[point];
  const int capacity = batch.list_capacity / (batch.planned_rows() * kv.kv_heads);
  const UnitBudget& budget = args.budgets[point * kv.kv_heads + kv_head];
  const PageChoice choice = page_choice(position, args.window, budget, limits, capacity);
  const int32_t list_begin = batch.list_begin() + unit * capacity;
  const PageRanges ranges =
      choice_ranges(choice, position, args.window, table_begin, list_begin, budget.summaries);
  if (choice.chosen == 0 || choice.chosen == choice.count) return ranges;

  const bool exact = kv.page_score == PageScore::kMass;
  POLAR_CHECK((exact || kv.index != nullptr) && args.query.data != nullptr);
  POLAR_CHECK(kv.head_dim <= kMostChannels);
  const int32_t* table = batch.pages + table_begin;
  const int group = args.heads / kv.kv_heads, padded = padded_pages(choice.count);
  PageScratch& memory = page_scratch_[thread];
  memory.pages.resize(choice.count);
  memory.mass.resize(padded);
  memory.scores.resize(static_cast<size_t>(padded) * kMassQueries);
  for (int i = 0; i < choice.count; ++i) {
    const int32_t page = table[choice.first + i];
    memory.pages[i] =
        exact ? kv.block(args.layer, page, kv_head) : kv.index_of(args.layer, page, kv_head);
  }
  const float* query = args.query.as<float>() +
                       (static_cast<int64_t>(row) * args.heads + kv_head * group) * kv.head_dim;
  kernels_.page_mass({kv.page_score, query, group, memory.pages.data(), kv.dtype, choice.count,
                      kv.head_dim, args.scale, memory.scores.data(), memory.mass.data()});
  args.plan.read[planned].scored += choice.count;

  int32_t* list = batch.pages + list_begin;
  std::copy_n(table, choice.sink, list);
  int32_t* best = list + choice.sink;
  kernels_.choose_largest(memory.mass.data(), choice.count, choice.chosen, best);
  if (ranges.read_bits != 0) {
    int32_t* bits = batch.pages + ranges.read_bits;
    std::fill_n(bits, (ranges.summary_end + kBitPages - 1) / kBitPages, 0);
    for (int i = 0; i < choice.chosen; ++i) {
      const int32_t page = choice.first + best[i];
      bits[page / kBitPages] |= 1 << page % kBitPages;
    }
  }
  for (int i = 0; i < choice.chosen; ++i) best[i] = table[choice.first + best[i]];
  return ranges;
}

PageRanges CpuOps::unit_ranges(const PlanArgs& args, int planned, int kv_head, const float* logits,
                               int thread) {
  const Batch& batch = *args.batch;
  const int row = batch.prefill_rows + planned, kv_heads = args.kv.kv_heads;
  const int32_t position = batch.position[row];
  const int32_t table_begin = batch.sequence[row] * batch.table_stride;
  if (args.budgets == nullptr) return full_ranges(position, args.window, table_begin);
  const PointLimits& limits = args.limits[batch.point[row]];
  const UnitBudget* budgets = args.budgets + static_cast<int64_t>(batch.point[row]) * kv_heads;
  const ReadKind kind = resolved_kind(budgets, limits, logits, kv_heads, kv_head);
  if (kind == ReadKind::kPages) return chosen_pages(args, planned, kv_head, thread);
  return fixed_ranges(kind, position, args.window, table_begin, limits, budgets[kv_head].summaries);
}

void CpuOps::plan(const PlanArgs& args) {
  const Batch& batch = *args.batch;
  const int kv_heads = args.kv.kv_heads, planned_rows = batch.planned_rows();
  const float* logits = nullptr;
  if (args.router != nullptr) {
    const int64_t width = args.x.shape[1];
    router_.resize(static_cast<size_t>(planned_rows) * kv_heads);
    product(args.x.as<float>() + batch.prefill_rows * width, width, planned_rows, *args.router,
            args.router_bias, router_.data(), kv_heads);
    logits = router_.data();
  }
  // Plans without a choice of pages cost less than waking the other threads.
  const int rows_per_claim = args.query.data != nullptr ? 1 : planned_rows;
  pool_.parallel_for(planned_rows, rows_per_claim, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t planned = begin; planned < end; ++planned) {
      for (int head = 0; head < kv_heads; ++head) {
        const PageRanges unit =
            unit_ranges(args, static_cast<int>(planned), head,
                        logits != nullptr ? logits + planned * kv_heads : nullptr, thread);
        args.plan.units[planned * kv_heads + head] = unit;
        POLAR_CHECK(unit.summaries == 0 || args.kv.summaries != nullptr);
        args.plan.read[planned].blocks += unit.count + unit.tail_count;
        args.plan.read[planned].summaries += unit.summaries;
      }
    }
  });
}

}  // namespace polar::backend::cpu
