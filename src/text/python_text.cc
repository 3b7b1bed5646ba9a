#include "text/python_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "text/unicode.h"
#include "text/utf8.h"

namespace polar::text {
namespace {

utf8proc_category_t category(char32_t value) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(value));
}

char32_t upper(char32_t value) {
  return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(value)));
}
char32_t lower(char32_t value) {
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(value)));
}

bool is_cased(char32_t value) {
  return upper(value) != value || lower(value) != value;
}

bool is_letter(char32_t value) {
  const auto kind = category(value);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

template <typename Visit>
void each(std::string_view text, Visit visit) {
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_utf8(text, at);
    visit(point.value);
    at += point.length;
  }
}

template <typename Predicate>
bool all(std::string_view text, Predicate predicate) {
  bool good = !text.empty();
  each(text, [&](char32_t c) { good = good && predicate(c); });
  return good;
}

// Upper case as str.upper(): sharp s has no single upper-case letter.
void append_upper(std::string& out, char32_t c) {
  if (c == 0xDF) {
    out += "SS";
  } else {
    append_utf8(out, upper(c));
  }
}

// str.isprintable() of one character.
bool is_printable(char32_t c) {
  if (c == ' ') return true;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

void append_escape(std::string& out, const char* format, char32_t value) {
  char text[16];
  std::snprintf(text, sizeof(text), format, static_cast<unsigned>(value));
  out += text;
}

size_t previous(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return begin;
}

bool contains(std::string_view characters, std::string_view one) {
  for (size_t at = 0; at < characters.size();) {
    const CodePoint point = decode_utf8(characters, at);
    if (characters.substr(at, point.length) == one) return true;
    at += point.length;
  }
  return false;
}

std::vector<std::string> split_spaces(std::string_view text, int64_t limit, bool from_right) {
  std::vector<std::string> parts;
  while (true) {
    text = from_right ? strip_right(text) : strip_left(text);
    if (text.empty()) break;
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
      parts.emplace_back(from_right ? strip_right(text) : text);
      break;
    }
    if (from_right) {
      size_t begin = text.size();
      while (begin > 0) {
        const size_t at = previous(text, begin);
        if (is_python_space(decode_utf8(text, at).value)) break;
        begin = at;
      }
      parts.emplace_back(text.substr(begin));
      text = text.substr(0, begin);
    } else {
      size_t end = 0;
      while (end < text.size()) {
        const CodePoint point = decode_utf8(text, end);
        if (is_python_space(point.value)) break;
        end += point.length;
      }
      parts.emplace_back(text.substr(0, end));
      text = text.substr(end);
    }
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace

bool is_python_space(char32_t value) {
  return is_whitespace(value) || (value >= 0x1C && value <= 0x1F);
}

std::string_view strip_left(std::string_view text) {
  return strip(text, std::nullopt, true, false);
}
std::string_view strip_right(std::string_view text) {
  return strip(text, std::nullopt, false, true);
}

std::string_view strip(std::string_view text, std::optional<std::string_view> chars, bool left,
                       bool right) {
  const auto goes = [&](size_t at, size_t length) {
    return chars ? contains(*chars, text.substr(at, length))
                 : is_python_space(decode_utf8(text, at).value);
  };
  size_t begin = 0, end = text.size();
  while (left && begin < end) {
    const size_t length = decode_utf8(text, begin).length;
    if (!goes(begin, length)) break;
    begin += length;
  }
  while (right && end > begin) {
    const size_t at = previous(text, end);
    if (!goes(at, end - at)) break;
    end = at;
  }
  return text.substr(begin, end - begin);
}

std::string to_upper(std::string_view text) {
  std::string out;
  each(text, [&](char32_t c) { append_upper(out, c); });
  return out;
}

std::string to_title(std::string_view text) {
  std::string out;
  bool inside = false;
  each(text, [&](char32_t c) {
    if (inside) {
      out += lowercase(code_points_of(c));
    } else {
      append_utf8(out, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
    }
    inside = is_cased(c);
  });
  return out;
}

std::string to_capitalized(std::string_view text) {
  std::string out;
  bool first = true;
  each(text, [&](char32_t c) {
    if (first) {
      append_utf8(out, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
    } else {
      out += lowercase(code_points_of(c));
    }
    first = false;
  });
  return out;
}

std::string swap_case(std::string_view text) {
  std::string out;
  each(text, [&](char32_t c) {
    if (lower(c) != c) {
      append_utf8(out, lower(c));
    } else {
      append_upper(out, c);
    }
  });
  return out;
}

std::string code_points_of(char32_t value) {
  std::string out;
  append_utf8(out, value);
  return out;
}

size_t byte_offset(std::string_view text, size_t index) {
  size_t at = 0;
  for (; index > 0 && at < text.size(); --index) at += decode_utf8(text, at).length;
  return at;
}

std::string code_points(std::string_view text, size_t begin, size_t end) {
  if (end <= begin) return std::string();
  const size_t from = byte_offset(text, begin);
  const size_t length = byte_offset(text.substr(from), end - begin);
  return std::string(text.substr(from, length));
}

std::string repr(std::string_view text) {
  const bool single = text.find('\'') != std::string_view::npos;
  const bool doubled = text.find('"') != std::string_view::npos;
  const char32_t quote = single && !doubled ? '"' : '\'';
  std::string out;
  append_utf8(out, quote);
  each(text, [&](char32_t c) {
    if (c == quote || c == '\\') {
      out += '\\';
      append_utf8(out, c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      append_utf8(out, c);
    } else {
      append_escape(out, c <= 0xFF ? "\\x%02x" : c <= 0xFFFF ? "\\u%04x" : "\\U%08x", c);
    }
  });
  append_utf8(out, quote);
  return out;
}

std::string repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char text[64];
  auto end = std::to_chars(text, text + sizeof(text), value, std::chars_format::scientific).ptr;
  const std::string_view shortest(text, static_cast<size_t>(end - text));
  const size_t mark = shortest.find('e');
  const int exponent = std::atoi(std::string(shortest.substr(mark + 1)).c_str());
  if (exponent < -4 || exponent >= 16) return std::string(shortest);
  end = std::to_chars(text, text + sizeof(text), value, std::chars_format::fixed).ptr;
  std::string out(text, static_cast<size_t>(end - text));
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

std::string json_string(std::string_view text, bool ensure_ascii) {
  std::string out = "\"";
  each(text, [&](char32_t c) {
    const char* const plain = "\"\\\n\r\t\b\f";
    const char* const names = "\"\\nrtbf";
    const char* at = c != 0 && c < 0x80 ? std::strchr(plain, static_cast<int>(c)) : nullptr;
    if (at != nullptr) {
      out += '\\';
      out += names[at - plain];
    } else if (c < 0x20 || (ensure_ascii && c > 0x7E && c <= 0xFFFF)) {
      append_escape(out, "\\u%04x", c);
    } else if (ensure_ascii && c > 0xFFFF) {
      append_escape(out, "\\u%04x", 0xD800 + ((c - 0x10000) >> 10));
      append_escape(out, "\\u%04x", 0xDC00 + ((c - 0x10000) & 0x3FF));
    } else {
      append_utf8(out, c);
    }
  });
  out += '"';
  return out;
}

std::vector<std::string> split(std::string_view text, std::optional<std::string_view> separator,
                               int64_t limit, bool from_right) {
  if (!separator) return split_spaces(text, limit, from_right);
  std::vector<std::string> parts;
  while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
    const size_t at = from_right ? text.rfind(*separator) : text.find(*separator);
    if (at == std::string_view::npos) break;
    if (from_right) {
      parts.emplace_back(text.substr(at + separator->size()));
      text = text.substr(0, at);
    } else {
      parts.emplace_back(text.substr(0, at));
      text = text.substr(at + separator->size());
    }
  }
  parts.emplace_back(text);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_utf8(text, at);
    const char32_t c = point.value;
    const bool ends = (c >= 0xA && c <= 0xD) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
                      c == 0x2028 || c == 0x2029;
    const size_t end = at;
    at += point.length;
    if (!ends) continue;
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    lines.emplace_back(text.substr(begin, (keep_ends ? at : end) - begin));
    begin = at;
  }
  if (begin < text.size()) lines.emplace_back(text.substr(begin));
  return lines;
}

std::string replace(std::string_view text, std::string_view from, std::string_view to,
                    int64_t limit) {
  std::string out;
  size_t done = 0;
  if (from.empty()) {
    while (limit != 0) {
      out += to;
      --limit;
      if (done >= text.size()) break;
      const size_t length = decode_utf8(text, done).length;
      out += text.substr(done, length);
      done += length;
    }
  } else {
    for (size_t at = text.find(from); at != std::string_view::npos && limit != 0;
         at = text.find(from, done), --limit) {
      out += text.substr(done, at - done);
      out += to;
      done = at + from.size();
    }
  }
  out += text.substr(std::min(done, text.size()));
  return out;
}

bool all_alphabetic(std::string_view text) {
  return all(text, is_letter);
}
bool all_alphanumeric(std::string_view text) {
  return all(text, [](char32_t c) { return is_letter(c) || is_numeric(c); });
}
bool all_digits(std::string_view text) {
  return all(text, [](char32_t c) {
    return category(c) == UTF8PROC_CATEGORY_ND || c == 0xB2 || c == 0xB3 || c == 0xB9 ||
           (c >= 0x2070 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089) ||
           (c >= 0x2460 && c <= 0x2468);
  });
}
bool all_spaces(std::string_view text) {
  return all(text, is_python_space);
}

bool is_upper(std::string_view text) {
  bool any = false, good = true;
  each(text, [&](char32_t c) {
    any = any || is_cased(c);
    good = good && (!is_cased(c) || upper(c) == c);
  });
  return any && good;
}

bool is_lower(std::string_view text) {
  bool any = false, good = true;
  each(text, [&](char32_t c) {
    any = any || is_cased(c);
    good = good && (!is_cased(c) || lower(c) == c);
  });
  return any && good;
}

}  // namespace polar::text
