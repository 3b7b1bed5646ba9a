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

// Bits of ThreadPool::state_.
constexpr uint32_t kInside = (1u << 11) - 1;  // workers inside the region
constexpr uint32_t kOpen = 1u << 11;
constexpr uint32_t kRegion = 1u << 12;  // one region further
constexpr int kMostThreads = 1024;

constexpr uint32_t region_of(uint32_t state) {
  return state / kRegion;
}

}  // namespace

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

ThreadPool::ThreadPool(int threads) {
  if (threads <= 0) threads = available_cores();
  threads = std::min(threads, kMostThreads);
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { worker_loop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  state_.fetch_add(kRegion);
  state_.notify_all();
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
  // Nobody is inside, so nobody else writes the state.
  const uint32_t region = region_of(state_.load(std::memory_order_relaxed)) + 1;
  state_.store(region * kRegion | kOpen, std::memory_order_release);
  state_.notify_all();
  work(0);
  state_.fetch_and(~kOpen);
  // Yields after a while: with more threads than free cores a worker may need this one.
  for (int spins = 0; (state_.load(std::memory_order_acquire) & kInside) != 0; ++spins) {
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
  uint32_t done = 0;  // the last region that this worker was in
  auto until = std::chrono::steady_clock::now() + kSpin;
  while (!stop_.load(std::memory_order_acquire)) {
    uint32_t state = state_.load(std::memory_order_relaxed);
    if ((state & kOpen) != 0 && region_of(state) != done) {
      if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) continue;
      work(thread);
      state_.fetch_sub(1, std::memory_order_release);
      done = region_of(state);
      until = std::chrono::steady_clock::now() + kSpin;
      continue;
    }
    for (int i = 0; i < 64 && state_.load(std::memory_order_relaxed) == state; ++i) pause();
    if (std::chrono::steady_clock::now() > until) state_.wait(state);
  }
}

}  // namespace polar
