#pragma once
// How callers' threads reach the engine thread: requests and cancellations, and nothing else.

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/job.h"

namespace polar::engine {

struct Commands {
  std::vector<std::unique_ptr<Job>> submitted;
  std::vector<uint64_t> cancelled;  // Generation::id
  bool stop = false;
};

class CommandQueue {
 public:
  void submit(std::unique_ptr<Job> job) {
    change([&] { pending_.submitted.push_back(std::move(job)); });
  }
  void cancel(uint64_t id) {
    change([&] { pending_.cancelled.push_back(id); });
  }
  void stop() {
    change([&] { pending_.stop = true; });
  }

  /// All commands since the last call; with `wait`, at least one.
  Commands take(bool wait) {
    std::unique_lock lock(mutex_);
    if (wait) ready_.wait(lock, [&] { return changed_; });
    changed_ = false;
    Commands taken = std::move(pending_);
    pending_ = {};
    return taken;
  }

 private:
  template <typename Change>
  void change(Change&& change) {
    {
      const std::scoped_lock lock(mutex_);
      change();
      changed_ = true;
    }
    ready_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  Commands pending_;
  bool changed_ = false;
};

}  // namespace polar::engine
