#include "engine/text_stream.h"

#include <algorithm>

namespace polar::engine {

TextStream::TextStream(const text::Tokenizer& tokenizer, std::vector<std::string> stops,
                       bool skip_special_tokens)
    : detokenizer_(tokenizer, skip_special_tokens), stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

std::string TextStream::push(text::TokenId token) {
  if (stopped_) return {};
  return settle(detokenizer_.push(token));
}

std::string TextStream::finish() {
  if (stopped_) return {};
  std::string text = settle(detokenizer_.flush());
  if (!stopped_) text += held_;
  held_.clear();
  return text;
}

std::string TextStream::settle(std::string_view more) {
  held_ += more;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, held_.find(stop));
  if (first != std::string::npos) {
    stopped_ = true;
    held_.resize(first);
    return std::move(held_);
  }
  // The longest end of the text that begins a stop string.
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
      if (held_.compare(held_.size() - length, length, stop, 0, length) == 0) keep = length;
    }
  }
  std::string settled = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return settled;
}

}  // namespace polar::engine
