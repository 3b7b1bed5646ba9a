#include "engine/generation.h"

#include <iterator>

#include "engine/command_queue.h"

namespace polar::engine {

namespace {

template <typename T>
void append(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

}  // namespace

std::optional<Event> Generation::next() {
  std::unique_lock lock(mutex_);
  ready_.wait(lock, [&] { return has_news_ || over_; });
  return take();
}

std::optional<Event> Generation::poll() {
  const std::scoped_lock lock(mutex_);
  return take();
}

std::optional<Event> Generation::take() {
  if (!has_news_) return std::nullopt;
  has_news_ = false;
  over_ = news_.finish.has_value();
  const Usage usage = news_.usage;
  std::optional<Event> event = std::move(news_);
  news_ = {};
  news_.usage = usage;
  return event;
}

void Generation::put(Event news) {
  {
    const std::scoped_lock lock(mutex_);
    append(news_.tokens, news.tokens);
    append(news_.prompt, news.prompt);
    news_.finish = news.finish;
    news_.error = std::move(news.error);
    news_.usage = news.usage;
    news_.read.add(news.read);
    has_news_ = true;
  }
  ready_.notify_all();
  if (on_news_) on_news_();
}

void Generation::cancel() {
  if (const auto commands = commands_.lock()) commands->cancel(id_);
}

}  // namespace polar::engine
