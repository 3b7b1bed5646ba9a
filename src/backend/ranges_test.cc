#include "backend/ranges.h"

#include <gtest/gtest.h>

#include <set>

namespace polar::backend {
namespace {

/// The logical pages of a plan; fails when one stands twice.
std::set<int> pages_of(const PageRanges& ranges, int table_begin) {
  std::set<int> pages;
  for (int i = 0; i < ranges.count; ++i)
    EXPECT_TRUE(pages.insert(ranges.begin + i - table_begin).second);
  for (int i = 0; i < ranges.tail_count; ++i) {
    EXPECT_TRUE(pages.insert(ranges.tail_begin + i - table_begin).second);
  }
  return pages;
}

TEST(Ranges, AgreeWithASetOfPagesBuiltTokenByToken) {
  for (const int window : {0, 1, 15, 16, 17, 40, 100}) {
    for (const int sink : {0, 1, 3}) {
      for (const int recent : {0, 1, 4}) {
        for (int position = 0; position < 200; ++position) {
          std::set<int> full, windowed;
          const int own = position / kPageTokens;
          for (int t = 0; t <= position; ++t) {
            if (window > 0 && t <= position - window) continue;
            const int page = t / kPageTokens;
            full.insert(page);
            if (page < sink || page >= own - recent) windowed.insert(page);
          }
          EXPECT_EQ(pages_of(full_ranges(position, window, 1000), 1000), full);
          EXPECT_EQ(pages_of(window_ranges(position, window, 1000, {sink, recent}), 1000), windowed)
              << "position " << position << ", window " << window << ", sink " << sink
              << ", recent " << recent;
        }
      }
    }
  }
}

TEST(Ranges, EndWithTheRowsOwnPage) {
  for (int position = 0; position < 100; ++position) {
    const PageRanges ranges = window_ranges(position, 0, 7, {1, 2});
    ASSERT_GT(ranges.tail_count, 0);
    EXPECT_EQ(ranges.tail_begin + ranges.tail_count - 1, 7 + position / kPageTokens);
  }
}

}  // namespace
}  // namespace polar::backend
