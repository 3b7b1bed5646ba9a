#include "cache/page_pool.h"

namespace polar::cache {

PagePool::PagePool(int pages) : references_(pages, 0) {
  POLAR_CHECK(pages >= 0);
  free_.reserve(pages);
  for (int page = pages - 1; page >= 0; --page) free_.push_back(page);
}

int32_t PagePool::allocate() {
  if (free_.empty()) return -1;
  const int32_t page = free_.back();
  free_.pop_back();
  references_[page] = 1;
  return page;
}

void PagePool::retain(int32_t page) {
  POLAR_CHECK(page >= 0 && page < pages() && references_[page] > 0);
  ++references_[page];
}

bool PagePool::release(int32_t page) {
  POLAR_CHECK(page >= 0 && page < pages() && references_[page] > 0);
  if (--references_[page] > 0) return false;
  free_.push_back(page);
  return true;
}

}  // namespace polar::cache
