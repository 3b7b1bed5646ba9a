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

/// The first `sink` pages and the last `recent` ones before the page being filled, and that page;
/// never more than what is visible, never a page twice.
POLAR_HOST_DEVICE inline PageRanges window_ranges(int32_t position, int32_t window,
                                                  int32_t table_begin, int32_t sink,
                                                  int32_t recent) {
  const int32_t own = position / kPageTokens;
  const int32_t first = first_visible_page(position, window);
  const int32_t tail = own - recent > first ? own - recent : first;
  const int32_t sink_end =
      first < sink ? sink : first;  // sink pages that are still visible: [first, sink)
  if (sink_end >= tail) return {0, 0, table_begin + first, own + 1 - first};
  return {table_begin + first, sink_end - first, table_begin + tail, own + 1 - tail};
}

}  // namespace polar::backend
