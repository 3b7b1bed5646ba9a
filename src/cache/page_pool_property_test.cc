#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <map>

#include "cache/page_pool.h"

namespace polar::cache {
namespace {

TEST(PagePool, AgreesWithAMapOfCounts) {
  EXPECT_TRUE(rc::check([] {
    const int pages = *rc::gen::inRange(0, 20);
    PagePool pool(pages);
    std::map<int32_t, int> counts;
    const auto steps = *rc::gen::container<std::vector<std::pair<int, int>>>(
        rc::gen::pair(rc::gen::inRange(0, 3), rc::gen::inRange(0, 1000)));
    for (const auto& [what, which] : steps) {
      if (what == 0 || counts.empty()) {
        const int32_t page = pool.allocate();
        RC_ASSERT((page < 0) == (static_cast<int>(counts.size()) == pages));
        if (page < 0) continue;
        RC_ASSERT(page < pages);
        RC_ASSERT(counts.count(page) == 0u);
        counts[page] = 1;
      } else {
        const auto it = std::next(counts.begin(), which % static_cast<int>(counts.size()));
        if (what == 1) {
          pool.retain(it->first);
          ++it->second;
        } else {
          RC_ASSERT(pool.release(it->first) == (it->second == 1));
          if (--it->second == 0) counts.erase(it);
        }
      }
      RC_ASSERT(pool.free_pages() == pages - static_cast<int>(counts.size()));
      for (const auto& [page, count] : counts) RC_ASSERT(pool.references(page) == count);
    }
  }));
}

TEST(PagePoolDeathTest, RefusesToReleaseAFreePage) {
  PagePool pool(2);
  EXPECT_DEATH(pool.release(0), "check failed");
}

}  // namespace
}  // namespace polar::cache
