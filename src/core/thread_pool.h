#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace polar {

/// A fixed set of threads for many short parallel regions: a decode step has hundreds, so idle
/// workers spin for some tens of microseconds before they sleep. One region runs at a time; the
/// caller works too.
class ThreadPool {
 public:
  /// `threads` includes the caller; 0: one per core that this process may use.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls fn(begin, end, thread) over [0, items) in pieces of `grain`, claimed as threads become
  /// free; returns when all are done. Which thread takes which piece varies: a result must not
  /// depend on it. `thread` is in [0, threads()).
  template <typename Fn>
  void parallel_for(int64_t items, int64_t grain, Fn&& fn) {
    using Function = std::remove_reference_t<Fn>;
    run(
        items, grain,
        [](void* context, int64_t begin, int64_t end, int thread) {
          (*static_cast<Function*>(context))(begin, end, thread);
        },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using Call = void (*)(void* context, int64_t begin, int64_t end, int thread);
  void run(int64_t items, int64_t grain, Call call, void* context);
  void work(int thread);
  void worker_loop(int thread);

  std::vector<std::thread> workers_;
  Call call_ = nullptr;
  void* context_ = nullptr;
  int64_t items_ = 0;
  int64_t grain_ = 1;
  alignas(64) std::atomic<int64_t> next_{0};
  // The region's number, whether it may still be joined, and how many workers are in it. A worker
  // that the system did not run in time never joins and is not waited for.
  alignas(64) std::atomic<uint32_t> state_{0};
  std::atomic<bool> stop_{false};
};

/// Cores that this process may run on.
int available_cores();

}  // namespace polar
