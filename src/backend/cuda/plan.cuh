#pragma once
// What all plan kernels share: a unit's ranges from its budget, and the schedule of a whole layer.

#include "backend/cuda/attention.h"
#include "backend/ranges.h"

namespace polar::backend::cuda {

struct PlanRow {
  int32_t position;
  int32_t table_begin;
  const UnitBudget* budgets;  // [kv_heads] of the row's point; null: full
  PointLimits limits;
};

__device__ __forceinline__ PlanRow plan_row(const PlanLaunch& p, int row) {
  PlanRow out{p.position[row], p.sequence[row] * p.table_stride, nullptr, {}};
  if (p.budgets != nullptr) {
    const int point = p.point[row];
    out.budgets = p.budgets + static_cast<int64_t>(point) * p.kv_heads;
    out.limits = p.limits[point];
  }
  return out;
}

/// resolved_kind() of one unit of planned row `which`.
__device__ __forceinline__ ReadKind unit_kind(const PlanLaunch& p, const PlanRow& row, int which,
                                              int head) {
  const float* logits =
      p.router != nullptr ? p.router + static_cast<int64_t>(which) * p.kv_heads : nullptr;
  return resolved_kind(row.budgets, row.limits, logits, p.kv_heads, head);
}

/// The pages among which a unit of kind kPages chooses.
__device__ __forceinline__ PageChoice candidates_of(const PlanLaunch& p, const PlanRow& row,
                                                    int head) {
  return page_choice(row.position, p.window, row.budgets[head], row.limits,
                     p.list_capacity / (p.rows * p.kv_heads));
}

/// Whether some of the candidates are read and others are not.
__device__ __forceinline__ bool must_select(const PageChoice& c) {
  return c.chosen > 0 && c.chosen < c.count;
}

/// Where a unit's list begins in Batch::pages.
__device__ __forceinline__ int list_begin_of(const PlanLaunch& p, int unit) {
  return p.list_begin + unit * (p.list_capacity / (p.rows * p.kv_heads));
}

/// Exclusive prefix sums over a block of `Threads` of two counts at once; `all` receives the
/// totals.
template <int Threads>
__device__ __forceinline__ int2 block_scan(int2 value, int2& all) {
  __shared__ int2 warp_sums[Threads / 32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  int2 sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int x = __shfl_up_sync(~0u, sum.x, step), y = __shfl_up_sync(~0u, sum.y, step);
    if (lane >= step) sum.x += x, sum.y += y;
  }
  __syncthreads();
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  int2 before = {0, 0};
  all = {0, 0};
#pragma unroll
  for (int w = 0; w < Threads / 32; ++w) {
    const int2 s = warp_sums[w];
    if (w < warp) before.x += s.x, before.y += s.y;
    all.x += s.x, all.y += s.y;
  }
  return {before.x + sum.x - value.x, before.y + sum.y - value.y};
}

/// The last of `count` ascending numbers that is not above `value`; the first one is not.
template <typename At>
__device__ __forceinline__ int last_not_above(int value, int count, At at) {
  int low = 0;
  while (count > 1) {
    const int half = count / 2;
    if (at(low + half) <= value)
      low += half, count -= half;
    else
      count = half;
  }
  return low;
}

inline constexpr int kMaxShares = 256;
inline constexpr int kSharedWorks = 4096;

/// Writes the schedule of the ranges in `plan`; done by one block, which sees what others wrote.
template <int Threads>
__device__ inline void build_schedule(const PlanLaunch& p) {
  __shared__ int bounds[kMaxShares], firsts[kSharedWorks];
  const Schedule& out = p.schedule;
  const int units = p.rows * p.kv_heads;
  const int per_thread = (units + Threads - 1) / Threads;
  const int begin = min(static_cast<int>(threadIdx.x) * per_thread, units);
  const int end = min(begin + per_thread, units);
  int2 mine = {0, 0};
  int row = -1, row_pages = 0;
  int row_summaries = 0;
  const auto add_to_row = [&] {
    if (p.read != nullptr && row_pages > 0) atomicAdd(&p.read[row].blocks, row_pages);
    if (p.read != nullptr && row_summaries > 0) atomicAdd(&p.read[row].summaries, row_summaries);
  };
  const auto ranges_of = [&](int unit) {
    const auto* halves = reinterpret_cast<const int4*>(p.plan + unit);
    const int4 a = __ldcg(halves), b = __ldcg(halves + 1);
    return PageRanges{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  };
#pragma unroll 4
  for (int unit = begin; unit < end; ++unit) {
    const PageRanges r = ranges_of(unit);
    const int pages = walked_pages(r);
    if (unit / p.kv_heads != row) {
      add_to_row();
      row = unit / p.kv_heads;
      row_pages = row_summaries = 0;
    }
    row_pages += r.count + r.tail_count;
    row_summaries += r.summaries;
    mine.x += pages;
    mine.y += pages > 0;
  }
  add_to_row();
  int2 all;
  int2 at = block_scan<Threads>(mine, all);
  if (threadIdx.x == 0) out.header[0] = all.x, out.header[1] = all.y;
  for (int s = threadIdx.x; s < out.shares; s += Threads)
    bounds[s] = share_begin(all.x, s, out.shares);
  __syncthreads();
  int share = 0;  // in which the thread's pages begin; they lie in this and the next few
  if (mine.x > 0) share = last_not_above(at.x, out.shares, [&](int s) { return bounds[s]; });
  const auto advance_to = [&](int page) {
    while (share + 1 < out.shares && bounds[share + 1] <= page) ++share;
    return share;
  };
  int which = begin / p.kv_heads, head = begin % p.kv_heads;
  for (int unit = begin; unit < end; ++unit, ++head) {
    if (head == p.kv_heads) head = 0, ++which;
    const PageRanges r = ranges_of(unit);
    const int pages = walked_pages(r);
    if (pages == 0) continue;
    auto* to = reinterpret_cast<int4*>(out.work + at.y);
    to[0] = make_int4(at.x, unit, r.begin, r.count);
    to[1] = make_int4(r.tail_begin, r.tail_count, r.summary_begin, r.summary_end);
    to[2] =
        make_int4(r.summaries, r.read_bits, p.position[which], p.sequence[which] * p.table_stride);
    const int first_share = advance_to(at.x);
    to[3] = make_int4(first_share, advance_to(at.x + pages - 1), head, 0);
    if (at.y < kSharedWorks) firsts[at.y] = at.x;
    at.x += pages;
    ++at.y;
  }
  __syncthreads();
  const auto first_of = [&](int work) {
    return work < kSharedWorks ? firsts[work] : out.work[work].first;
  };
  for (int i = threadIdx.x; i < out.shares * kShareParts && all.y > 0; i += Threads) {
    const int share = i / kShareParts;
    const int share_end = share + 1 < out.shares ? bounds[share + 1] : all.x;
    out.start[i] =
        last_not_above(part_begin(bounds[share], share_end, i % kShareParts), all.y, first_of);
  }
}

}  // namespace polar::backend::cuda
