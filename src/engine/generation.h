#pragma once
// One request in the engine, as its caller holds it: a stream of events and a way to stop it.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "engine/request.h"

namespace polar::engine {

class CommandQueue;

/// Safe for concurrent use by its caller and the engine; may outlive the engine. Dropping it does
/// not end the request; cancel() does.
class Generation {
 public:
  Generation(std::weak_ptr<CommandQueue> commands, uint64_t id, std::function<void()> on_news)
      : commands_(std::move(commands)), id_(id), on_news_(std::move(on_news)) {}

  /// What came since the last call, in one event; waits while nothing came. Nothing comes after the
  /// event that holds `finish`: nullopt.
  std::optional<Event> next();
  /// The same without waiting: nullopt also when nothing came.
  std::optional<Event> poll();

  /// Asks the engine to end the request soon. It then finishes as cancelled, unless something else
  /// was faster.
  void cancel();

  uint64_t id() const { return id_; }
  /// The engine's side: adds news.
  void put(Event news);

 private:
  std::optional<Event> take();

  std::weak_ptr<CommandQueue> commands_;
  uint64_t id_;
  std::function<void()> on_news_;
  std::mutex mutex_;
  std::condition_variable ready_;
  Event news_;
  bool has_news_ = false;
  bool over_ = false;  // the last event was taken
};

}  // namespace polar::engine
