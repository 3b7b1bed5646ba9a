#include "core/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>

namespace polar {

namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// Long enough to bridge the serial parts between two regions of a step, short enough to leave an
/// idle machine idle.
constexpr auto kSpin = std::chrono::microseconds(100);
constexpr int kSpinsBeforeYield = 4000;

}  // namespace

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

ThreadPool::ThreadPool(int threads) {
  if (threads <= 0) threads = available_cores();
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { worker_loop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t items, int64_t grain, Call call, void* context) {
  if (items <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (workers_.empty() || items <= grain) {
    call(context, 0, items, 0);
    return;
  }
  call_ = call;
  context_ = context;
  items_ = items;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  work(0);
  // Yields after a while: with more threads than free cores a worker may need this one.
  for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpinsBeforeYield) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::work(int thread) {
  for (;;) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= items_) return;
    call_(context_, begin, std::min(begin + grain_, items_), thread);
  }
}

void ThreadPool::worker_loop(int thread) {
  uint32_t seen = 0;
  for (;;) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    while (epoch_.load(std::memory_order_acquire) == seen) {
      for (int i = 0; i < 64 && epoch_.load(std::memory_order_relaxed) == seen; ++i) pause();
      if (std::chrono::steady_clock::now() > until) epoch_.wait(seen);
    }
    ++seen;
    if (stop_.load()) return;
    work(thread);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace polar
