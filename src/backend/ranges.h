#pragma once
// Which pages a unit reads, as ranges over its page table: one definition for the plan verbs of all
// backends and for studies.

#include "backend/step.h"

#ifdef __CUDACC__
#define POLAR_HOST_DEVICE __host__ __device__
#else
#define POLAR_HOST_DEVICE
#endif

namespace polar::backend {

/// First logical page that a row at `position` may see under the model's own sliding window of
/// `window` tokens (0: none).
POLAR_HOST_DEVICE inline int32_t first_visible_page(int32_t position, int32_t window) {
  return window > 0 && position >= window ? (position - window + 1) / kPageTokens : 0;
}

/// Everything up to the row's own page. `table_begin` is the sequence's first entry in
/// Batch::pages.
POLAR_HOST_DEVICE inline PageRanges full_ranges(int32_t position, int32_t window,
                                                int32_t table_begin) {
  const int32_t first = first_visible_page(position, window);
  return {0, 0, table_begin + first, position / kPageTokens + 1 - first};
}

/// First logical page of which such a row sees all tokens.
POLAR_HOST_DEVICE inline int32_t first_whole_page(int32_t position, int32_t window) {
  if (window <= 0 || position < window) return 0;
  return (position - window + 1 + kPageTokens - 1) / kPageTokens;
}

/// The first `limits.sink` pages and the last `limits.recent` ones before the page being filled,
/// and that page; never more than what is visible, never a page twice. `summaries`: the whole pages
/// between are seen by these.
POLAR_HOST_DEVICE inline PageRanges window_ranges(int32_t position, int32_t window,
                                                  int32_t table_begin, const PointLimits& limits,
                                                  bool summaries = false) {
  const int32_t own = position / kPageTokens;
  const int32_t first = first_visible_page(position, window);
  const int32_t tail = own - limits.recent > first ? own - limits.recent : first;
  const int32_t sink_end =
      first < limits.sink ? limits.sink : first;  // sink pages still visible: [first, sink)
  if (sink_end >= tail) return {0, 0, table_begin + first, own + 1 - first};
  PageRanges ranges{table_begin + first, sink_end - first, table_begin + tail, own + 1 - tail};
  const int32_t whole = first_whole_page(position, window);
  const int32_t begin = sink_end > whole ? sink_end : whole;
  if (!summaries || begin >= tail) return ranges;
  ranges.summary_begin = begin;
  ranges.summary_end = tail;
  ranges.summaries = tail - begin;
  return ranges;
}

/// The pages among which a unit of kind kPages chooses, and how many of them it reads.
struct PageChoice {
  int32_t first = 0, count = 0;  // the candidates: logical pages [first, first + count)
  int32_t chosen = 0;            // of them
  int32_t sink = 0;              // pages before them, always read
};

/// Pages that one word of PageRanges::read_bits speaks of.
inline constexpr int kBitPages = 16;

/// Entries of a unit's list: its pages and, where others are seen by their summaries, the bits that
/// say which are read.
POLAR_HOST_DEVICE constexpr int32_t list_entries(int32_t table_stride) {
  return table_stride + (table_stride + kBitPages - 1) / kBitPages;
}

/// A unit reads ceil(pages_per_mille / 1000 * visible pages) pages in all, sink, newest and the
/// page being filled included, at least those and UnitBudget::least; `capacity`: entries of its
/// list. Under a sliding window, pages that are seen in part cannot stand in a list: there is then
/// no sink, and the first visible page is given up.
POLAR_HOST_DEVICE inline PageChoice page_choice(int32_t position, int32_t window,
                                                const UnitBudget& budget, const PointLimits& limits,
                                                int32_t capacity) {
  const auto least = [](int32_t a, int32_t b) { return a < b ? a : b; };
  const auto most = [](int32_t a, int32_t b) { return a > b ? a : b; };
  const int32_t own = position / kPageTokens;
  const int32_t visible = first_visible_page(position, window);
  const bool cut = window > 0 && position >= window;
  const int32_t sink = cut ? 0 : least(limits.sink, own);
  const int32_t first = cut ? first_whole_page(position, window) : sink;
  const int32_t tail = most(own - limits.recent, first);
  const int32_t share = (budget.pages_per_mille * (own + 1 - visible) + 999) / 1000;
  const int32_t pages = most(share, budget.least);
  const int32_t count = tail - first;
  const int32_t room = capacity - sink - (budget.summaries ? own / kBitPages + 1 : 0);
  const int32_t chosen = least(most(pages - sink - (own + 1 - tail), 0), most(room, 0));
  return {first, count, least(chosen, count), sink};
}

/// What a unit that chooses among its pages reads, given its choice: everything, its ends alone, or
/// the list that begins at entry `list_begin` (sink, then the chosen pages, then their bits if
/// `summaries`) and its newest pages.
POLAR_HOST_DEVICE inline PageRanges choice_ranges(const PageChoice& choice, int32_t position,
                                                  int32_t window, int32_t table_begin,
                                                  int32_t list_begin, bool summaries) {
  if (choice.chosen == choice.count) return full_ranges(position, window, table_begin);
  const int32_t tail = choice.first + choice.count;
  PageRanges ranges{choice.chosen == 0 ? table_begin : list_begin, choice.sink + choice.chosen,
                    table_begin + tail, position / kPageTokens + 1 - tail};
  if (!summaries) return ranges;
  ranges.summary_begin = choice.first;
  ranges.summary_end = tail;
  ranges.summaries = choice.count - choice.chosen;
  if (choice.chosen > 0) ranges.read_bits = list_begin + choice.sink + choice.chosen;
  return ranges;
}

/// The groups of kBitPages logical pages, from page 0 on, that hold a unit's summaries: the first
/// one, and how many.
struct SummaryGroups {
  int32_t first = 0, count = 0;
};
POLAR_HOST_DEVICE inline SummaryGroups summary_groups(const PageRanges& ranges) {
  const int32_t first = ranges.summary_begin / kBitPages;
  return {first, (ranges.summary_end + kBitPages - 1) / kBitPages - first};
}

/// Pages that a walk over a unit passes where a group of summaries is put together as one.
POLAR_HOST_DEVICE inline int32_t walked_pages(const PageRanges& ranges) {
  return summary_groups(ranges).count + ranges.count + ranges.tail_count;
}

/// Bit i: logical page group * kBitPages + i is seen by its summary.
POLAR_HOST_DEVICE inline uint32_t summary_bits(const PageRanges& ranges, int32_t group,
                                               const int32_t* pages) {
  const int32_t first = group * kBitPages;
  const int32_t from = ranges.summary_begin > first ? ranges.summary_begin - first : 0;
  const int32_t to =
      ranges.summary_end < first + kBitPages ? ranges.summary_end - first : kBitPages;
  if (from >= to) return 0;
  const uint32_t range = ((1u << to) - 1) & ~((1u << from) - 1);
  return ranges.read_bits == 0 ? range
                               : range & ~static_cast<uint32_t>(pages[ranges.read_bits + group]);
}

/// What unit `head` of a row may read, once its routed units are decided: the PointLimits::routed
/// ones with the largest `logits` [kv_heads] are full (ties: the lower head), the others fall back;
/// without logits all of them do. `budgets` [kv_heads] of the row's point; null: full.
POLAR_HOST_DEVICE inline ReadKind resolved_kind(const UnitBudget* budgets,
                                                const PointLimits& limits, const float* logits,
                                                int kv_heads, int head) {
  if (budgets == nullptr) return ReadKind::kFull;
  const UnitBudget budget = budgets[head];
  if (budget.kind != ReadKind::kRouted) return budget.kind;
  if (logits == nullptr) return budget.fallback;
  const float own = logits[head];
  int better = 0;
  for (int other = 0; other < kv_heads; ++other) {
    if (other == head || budgets[other].kind != ReadKind::kRouted) continue;
    better += logits[other] > own || (logits[other] == own && other < head);
  }
  return better < limits.routed ? ReadKind::kFull : budget.fallback;
}

/// The ranges of every kind but kPages, which reads all where nothing is chosen.
POLAR_HOST_DEVICE inline PageRanges fixed_ranges(ReadKind kind, int32_t position, int32_t window,
                                                 int32_t table_begin, const PointLimits& limits,
                                                 bool summaries) {
  if (kind == ReadKind::kNone) return {};
  if (kind == ReadKind::kWindow)
    return window_ranges(position, window, table_begin, limits, summaries);
  return full_ranges(position, window, table_begin);
}

}  // namespace polar::backend
