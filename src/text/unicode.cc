#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <span>

#include "core/error.h"
#include "text/utf8.h"

namespace polar::text {
namespace {

struct Range {
  char32_t first, last;
};
struct Property {
  const char* name;
  std::span<const Range> ranges;
};

#include "text/unicode_tables.inc"

bool in_ranges(char32_t value, std::span<const Range> ranges) {
  const auto at = std::upper_bound(ranges.begin(), ranges.end(), value,
                                   [](char32_t c, const Range& range) { return c < range.first; });
  return at != ranges.begin() && value <= std::prev(at)->last;
}

bool is_ascii(std::string_view text) {
  for (char c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) return false;
  }
  return true;
}

}  // namespace

namespace {

void append_normalized(std::string& out, std::string_view text, int options) {
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t length = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
      static_cast<utf8proc_ssize_t>(text.size()), &mapped, static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
  POLAR_CHECK(length >= 0);  // the caller gives valid UTF-8
  out.append(reinterpret_cast<const char*>(mapped), static_cast<size_t>(length));
}

}  // namespace

// A character that the package's tables do not know is a plain one to it: nothing composes with it
// or moves past it, so the text is normalised piece by piece around such characters.
std::string normalize(std::string_view text, NormalForm form) {
  if (is_ascii(text)) return std::string(text);
  int options = UTF8PROC_STABLE;
  switch (form) {
    case NormalForm::kNfc:
      options |= UTF8PROC_COMPOSE;
      break;
    case NormalForm::kNfd:
      options |= UTF8PROC_DECOMPOSE;
      break;
    case NormalForm::kNfkc:
      options |= UTF8PROC_COMPOSE | UTF8PROC_COMPAT;
      break;
    case NormalForm::kNfkd:
      options |= UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT;
      break;
  }
  std::string out;
  out.reserve(text.size());
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_utf8(text, at);
    if (point.value >= 0x300 && in_ranges(point.value, kUnknownToNormalForms)) {
      append_normalized(out, text.substr(begin, at - begin), options);
      out += text.substr(at, point.length);
      begin = at + point.length;
    }
    at += point.length;
  }
  append_normalized(out, text.substr(begin), options);
  return out;
}

std::string lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_utf8(text, at);
    if (point.value == 0x130) {  // the only character whose lower case has two code points
      out += "i\xCC\x87";
    } else {
      append_utf8(
          out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(point.value))));
    }
    at += point.length;
  }
  return out;
}

bool is_whitespace(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_numeric(char32_t value) {
  return in_ranges(value, kNumeric);
}
bool is_word(char32_t value) {
  return in_ranges(value, kWord);
}
bool is_punctuation(char32_t value) {
  return in_ranges(value, kPunctuation);
}
bool is_accent(char32_t value) {
  return in_ranges(value, kAccents);
}

namespace {

void append_escapes(std::string& out, std::span<const Range> ranges) {
  for (const Range& range : ranges) {
    char text[40];
    std::snprintf(text, sizeof(text), "\\x{%X}-\\x{%X}", static_cast<unsigned>(range.first),
                  static_cast<unsigned>(range.last));
    out += text;
  }
}

}  // namespace

std::string newer_characters(std::string_view property) {
  std::string out;
  for (const Property& one : kNewer) {
    if (property == one.name) append_escapes(out, one.ranges);
  }
  return out;
}

std::string other_word_characters() {
  std::string out;
  append_escapes(out, kWordBeyondCategories);
  return out;
}

}  // namespace polar::text
