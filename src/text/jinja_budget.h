#pragma once
// What one rendering may use. Templates come from model files: one that loops for ever or doubles a
// string a hundred times ends with a Failure. Private to src/text.

#include <cstddef>
#include <cstdint>

namespace polar::text::jinja {

/// While it lives, the thread's rendering is counted against it.
class Budget {
 public:
  static constexpr size_t kMaxSteps = 2'000'000;          // nodes evaluated, items visited
  static constexpr size_t kMaxBytes = size_t{512} << 20;  // made in all, output included

  Budget();
  ~Budget();
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

  /// Counts work, or memory that is about to be used. Throws Failure when there is too much.
  static void steps(size_t count);
  static void bytes(size_t count);
  /// Work of looking for a needle of `needle` bytes in `text` bytes, at worst.
  static void search(size_t text, size_t needle);

 private:
  size_t steps_ = 0, bytes_ = 0;
  Budget* outer_;
};

}  // namespace polar::text::jinja
