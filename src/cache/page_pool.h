#pragma once
// A fixed number of KV pages, given out by id and counted by reference.

#include <cstdint>
#include <vector>

#include "core/error.h"

namespace polar::cache {

/// Not for concurrent use: the engine thread owns it.
class PagePool {
 public:
  explicit PagePool(int pages);

  int pages() const { return static_cast<int>(references_.size()); }
  int free_pages() const { return static_cast<int>(free_.size()); }

  /// A page with one reference, or -1 when none is free. The page freed last comes first: its
  /// memory is known to the caches, and pages that were never needed are never touched.
  int32_t allocate();
  void retain(int32_t page);
  /// Gives one reference back; true when it was the last one and the page is free again.
  bool release(int32_t page);
  int references(int32_t page) const { return references_[page]; }

 private:
  std::vector<int32_t> references_;  // [pages]
  std::vector<int32_t> free_;        // the next one to give out is at the back
};

}  // namespace polar::cache
