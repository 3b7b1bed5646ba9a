#pragma once
// UTF-8 as a sequence of code points, with one rule for what is not UTF-8: each maximal piece of an
// ill-formed sequence counts as U+FFFD (Unicode 15, section 3.9, "Substitution of Maximal
// Subparts"). It is what Rust's from_utf8_lossy and Python's errors="replace" do, so all text
// agrees with theirs.

#include <cstddef>
#include <string>
#include <string_view>

namespace polar::text {

inline constexpr char32_t kReplacement = 0xFFFD;

/// One decoded step through a text.
struct CodePoint {
  char32_t value;    // kReplacement when `valid` is false
  size_t length;     // bytes consumed, at least 1
  bool valid;        // a well-formed sequence stood here
  bool could_go_on;  // ill-formed only because the text ended: more bytes could complete it
};

/// The code point at `text[at]`; `at < text.size()`.
CodePoint decode_utf8(std::string_view text, size_t at);

/// Appends `value` to `out` as UTF-8; a surrogate or a value above U+10FFFF becomes U+FFFD.
void append_utf8(std::string& out, char32_t value);

/// True if every byte of `text` belongs to a well-formed sequence.
bool is_valid_utf8(std::string_view text);

/// `text` with each ill-formed piece replaced by U+FFFD.
std::string to_valid_utf8(std::string_view text);

/// Length in bytes of the longest prefix whose replacement is settled: only an unfinished but so
/// far well-formed last character (at most 3 bytes) is left out.
size_t settled_utf8_prefix(std::string_view text);

/// Number of code points in valid UTF-8.
size_t count_code_points(std::string_view text);

}  // namespace polar::text
