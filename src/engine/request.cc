#include "engine/request.h"

#include <algorithm>
#include <functional>

namespace polar::engine {

const char* finish_reason_name(FinishReason reason) {
  static constexpr const char* kNames[] = {"stop", "length", "cancelled", "error"};
  return kNames[static_cast<int>(reason)];
}

void ReadTrace::add(const ReadTrace& other) {
  const auto add_to = [](std::vector<int64_t>& sums, const std::vector<int64_t>& more) {
    sums.resize(std::max(sums.size(), more.size()));
    std::transform(more.begin(), more.end(), sums.begin(), sums.begin(), std::plus<>());
  };
  rows += other.rows;
  add_to(pages, other.pages);
  add_to(dense, other.dense);
}

}  // namespace polar::engine
