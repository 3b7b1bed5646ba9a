#pragma once
// A compiled regular expression for splitting text, over PCRE2 with its JIT compiler. Patterns are
// written for Oniguruma (what the `tokenizers` package uses); see regex.cc for what is translated.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace polar::text {

/// Half-open range of bytes.
struct Span {
  size_t begin;
  size_t end;
};

/// Immutable and safe for concurrent use.
class Regex {
 public:
  /// Compiles `pattern`; `where` and `key` name the file and the key in the error.
  static Result<Regex> compile(std::string_view pattern, std::string_view where,
                               std::string_view key);

  /// A regex that matches exactly the characters of `text`.
  static Regex literal(std::string_view text);

  /// All non-overlapping, non-empty-or-advancing matches in `text` (valid UTF-8), from left to
  /// right. A match that exceeds the backtracking limit ends the list: the rest counts as
  /// unmatched.
  void find_all(std::string_view text, std::vector<Span>& matches) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace polar::text
