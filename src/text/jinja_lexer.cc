#include "text/jinja_lexer.h"

#include <algorithm>
#include <cctype>

#include "text/python_text.h"
#include "text/utf8.h"

namespace polar::text::jinja {

void fail(std::string message, int line) {
  throw Failure{std::move(message), line, false};
}

namespace {

// All line ends become \n, and one at the very end goes (keep_trailing_newline is off).
std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

bool is_name_start(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}
bool is_name_part(char c) {
  return is_name_start(c) || std::isdigit(static_cast<unsigned char>(c));
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) data();
    put(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  bool see(std::string_view text) const { return rest().starts_with(text); }

  void advance(size_t count) {
    line_ +=
        static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                    source_.begin() + static_cast<ptrdiff_t>(at_ + count), '\n'));
    at_ += count;
    if (count > 0) line_starting_ = source_[at_ - 1] == '\n';
  }

  void put(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  void skip_spaces() { advance(rest().size() - strip_left(rest()).size()); }

  // The white space between the text and the tag that follows it.
  std::string_view before_tag(std::string_view text, char sign, bool expression) const {
    if (sign == '-') return strip_right(text);
    if (sign == '+' || expression) return text;
    const size_t newline = text.rfind('\n');
    const size_t start = newline == std::string_view::npos ? 0 : newline + 1;
    if (start == 0 && !line_starting_) return text;
    return strip_left(text.substr(start)).empty() ? text.substr(0, start) : text;
  }

  void data() {
    size_t tag = at_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) {
        put(TokenKind::kText, source_.substr(at_));
        advance(source_.size() - at_);
        return;
      }
      const char next = source_[tag + 1];
      if (next == '{' || next == '%' || next == '#') break;
      ++tag;
    }
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const bool has_sign = sign == '-' || sign == '+';
    const auto text = std::string_view(source_).substr(at_, tag - at_);
    const auto kept = before_tag(text, sign, kind == '{');
    if (!kept.empty()) put(TokenKind::kText, std::string(kept));
    advance(tag - at_ + 2 + (has_sign ? 1 : 0));
    if (kind == '#') {
      comment();
    } else if (kind == '%' && raw_begins()) {
      raw();
    } else {
      put(kind == '{' ? TokenKind::kExpressionBegin : TokenKind::kBlockBegin, "");
      code(kind == '{' ? "}}" : "%}", kind == '{');
    }
  }

  // Eats the end of a tag at the position if one is there: `-%}` with all white space behind it,
  // `+%}`, or `%}` with one line end behind it (not behind an expression).
  bool eat_end(std::string_view end, bool expression) {
    if (see("-" + std::string(end))) {
      advance(1 + end.size());
      skip_spaces();
      return true;
    }
    if (!expression && see("+" + std::string(end))) {
      advance(1 + end.size());
      return true;
    }
    if (!see(end)) return false;
    advance(end.size() + (!expression && rest().substr(end.size()).starts_with('\n') ? 1 : 0));
    return true;
  }

  void comment() {
    const int line = line_;
    while (at_ < source_.size()) {
      if (eat_end("#}", false)) return;
      advance(1);
    }
    fail("a comment that does not end", line);
  }

  bool raw_begins() {
    const auto body = strip_left(rest());
    if (!body.starts_with("raw")) return false;
    const auto behind = strip_left(body.substr(3));
    return behind.starts_with("%}") || behind.starts_with("-%}");
  }

  void raw() {
    const int line = line_;
    skip_spaces();
    advance(3);
    skip_spaces();
    if (see("-%}")) {
      advance(3);
      skip_spaces();
    } else {
      advance(2);
    }
    for (size_t tag = source_.find("{%", at_); tag != std::string::npos;
         tag = source_.find("{%", tag + 1)) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
      const bool has_sign = sign == '-' || sign == '+';
      auto body = strip_left(std::string_view(source_).substr(tag + 2 + (has_sign ? 1 : 0)));
      if (!body.starts_with("endraw")) continue;
      body = strip_left(body.substr(6));
      if (!body.starts_with("%}") && !body.starts_with("-%}") && !body.starts_with("+%}")) continue;
      const auto text = std::string_view(source_).substr(at_, tag - at_);
      put(TokenKind::kText, std::string(before_tag(text, sign, false)));
      advance(source_.size() - body.size() - at_);
      eat_end("%}", false);
      return;
    }
    fail("{% raw %} without {% endraw %}", line);
  }

  void code(std::string_view end, bool expression) {
    std::string open;  // brackets that wait for their partner
    const int line = line_;
    while (true) {
      skip_spaces();
      if (at_ >= source_.size()) fail("a tag that does not end", line);
      if (open.empty() && eat_end(end, expression)) {
        put(expression ? TokenKind::kExpressionEnd : TokenKind::kBlockEnd, "");
        return;
      }
      const char c = source_[at_];
      if (is_digit(c)) {
        number();
      } else if (is_name_start(c)) {
        name();
      } else if (c == '"' || c == '\'') {
        string(c);
      } else {
        symbol(open);
      }
    }
  }

  void name() {
    size_t length = 1;
    while (length < rest().size() && is_name_part(rest()[length])) ++length;
    put(TokenKind::kName, std::string(rest().substr(0, length)));
    advance(length);
  }

  // Digits with single underscores between them, from `from` on; returns where they end.
  size_t digits(size_t from, bool (*is)(char)) const {
    size_t at = from;
    while (at < rest().size()) {
      const bool joins =
          rest()[at] == '_' && at > from && at + 1 < rest().size() && is(rest()[at + 1]);
      if (!joins && !is(rest()[at])) break;
      ++at;
    }
    return at;
  }

  void number() {
    const auto is_hex = [](char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; };
    const char base = rest().size() > 1 ? static_cast<char>(std::tolower(rest()[1])) : '\0';
    size_t end = 0;
    bool is_float = false;
    if (rest()[0] == '0' && (base == 'x' || base == 'o' || base == 'b')) {
      end = digits(2, is_hex);
    } else {
      end = digits(0, is_digit);
      if (end + 1 < rest().size() && rest()[end] == '.' && is_digit(rest()[end + 1])) {
        end = digits(end + 1, is_digit);
        is_float = true;
      }
      size_t exponent = end;
      if (exponent < rest().size() && (rest()[exponent] == 'e' || rest()[exponent] == 'E')) {
        ++exponent;
        if (exponent < rest().size() && (rest()[exponent] == '+' || rest()[exponent] == '-')) {
          ++exponent;
        }
        if (exponent < rest().size() && is_digit(rest()[exponent])) {
          end = digits(exponent, is_digit);
          is_float = true;
        }
      }
    }
    std::string text(rest().substr(0, end));
    std::erase(text, '_');
    put(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(text));
    advance(end);
  }

  void string(char quote) {
    size_t end = 1;
    while (end < rest().size() && rest()[end] != quote) end += rest()[end] == '\\' ? 2 : 1;
    if (end >= rest().size()) fail("a string that does not end", line_);
    put(TokenKind::kString, unescape(rest().substr(1, end - 1)));
    advance(end + 1);
  }

  // Python's unicode-escape codec: unknown escapes stay as they are.
  std::string unescape(std::string_view text) const {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\' || i + 1 >= text.size()) {
        out += text[i];
        continue;
      }
      const char kind = text[++i];
      const char* const simple = "\\'\"abfnrtv";
      const char* const values = "\\'\"\a\b\f\n\r\t\v";
      if (kind == '\n') continue;
      if (const auto* at = std::find(simple, simple + 10, kind); at != simple + 10) {
        out += values[at - simple];
      } else if (kind == 'x' || kind == 'u' || kind == 'U') {
        i += hex_escape(text.substr(i + 1), kind == 'x' ? 2 : kind == 'u' ? 4 : 8, out);
      } else if (kind >= '0' && kind <= '7') {
        char32_t value = 0;
        size_t count = 0;
        while (count < 3 && i + count < text.size() && text[i + count] >= '0' &&
               text[i + count] <= '7') {
          value = value * 8 + static_cast<char32_t>(text[i + count] - '0');
          ++count;
        }
        append_utf8(out, value);
        i += count - 1;
      } else {
        out += '\\';
        out += kind;
      }
    }
    return out;
  }

  size_t hex_escape(std::string_view text, size_t count, std::string& out) const {
    char32_t value = 0;
    for (size_t i = 0; i < count; ++i) {
      if (i >= text.size() || !std::isxdigit(static_cast<unsigned char>(text[i]))) {
        fail("a string with a truncated escape", line_);
      }
      const char c = static_cast<char>(std::tolower(text[i]));
      value = value * 16 + static_cast<char32_t>(is_digit(c) ? c - '0' : c - 'a' + 10);
    }
    append_utf8(out, value);
    return count;
  }

  void symbol(std::string& open) {
    static const std::string_view kLong[] = {"//", "**", "==", "!=", ">=", "<="};
    for (std::string_view one : kLong) {
      if (see(one)) {
        put(TokenKind::kOperator, std::string(one));
        advance(2);
        return;
      }
    }
    const char c = source_[at_];
    if (std::string_view("+-*/%~[](){}><=.:|,;").find(c) == std::string_view::npos) {
      const CodePoint point = decode_utf8(source_, at_);
      fail("the character " + source_.substr(at_, point.length) + " in a tag", line_);
    }
    if (c == '(' || c == '[' || c == '{') open += c;
    if (c == ')' || c == ']' || c == '}') {
      const char partner = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (open.empty() || open.back() != partner) fail(std::string("an unexpected ") + c, line_);
      open.pop_back();
    }
    put(TokenKind::kOperator, std::string(1, c));
    advance(1);
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(normalize_newlines(source)).run();
}

}  // namespace polar::text::jinja
