#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace polar {
namespace {

TEST(ThreadPool, TouchesEveryItemOnceWhateverTheGrain) {
  std::mt19937 random(7);
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int round = 0; round < 200; ++round) {
      const int64_t items = random() % 300;
      std::vector<int> touched(items, 0);
      pool.parallel_for(items, 1 + random() % 40, [&](int64_t begin, int64_t end, int thread) {
        ASSERT_GE(thread, 0);
        ASSERT_LT(thread, threads);
        for (int64_t i = begin; i < end; ++i) ++touched[i];
      });
      EXPECT_EQ(std::accumulate(touched.begin(), touched.end(), 0), items);
      EXPECT_TRUE(
          std::all_of(touched.begin(), touched.end(), [](int count) { return count == 1; }));
    }
  }
}

TEST(ThreadPool, WakesSleepingWorkers) {
  ThreadPool pool(4);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int64_t> sum{0};
    pool.parallel_for(1000, 7, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
    EXPECT_EQ(sum.load(), 1000);
  }
}

}  // namespace
}  // namespace polar
