// Filters of jinja2 3.1 that make texts and numbers.

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "text/jinja_budget.h"
#include "text/jinja_filters.h"
#include "text/python_text.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace polar::text::jinja {
namespace {

Value make_text(std::string text) {
  Budget::bytes(text.size());
  return Value::text(std::move(text));
}

std::string str_of(const Value& value) {
  std::string text = value.str();
  Budget::bytes(text.size());
  return text;
}

Value absolute(const Value& value, Arguments&) {
  if (value.is_integer()) {
    const int64_t number = value.as_integer("abs");
    return number < 0 ? arithmetic("-", Value::integer(0), value) : Value::integer(number);
  }
  return Value::number(std::fabs(value.as_number("abs")));
}

Value center(const Value& value, Arguments& arguments) {
  ArgumentReader reader("center", arguments);
  Arguments width;
  width.positional.push_back(Value::integer(reader.integer(0, "width", 80)));
  reader.finish();
  return call(get_method(Value::text(str_of(value)), "center"), width);
}

Value escape(const Value& value, Arguments&) {
  std::string out;
  for (char c : str_of(value)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return make_text(std::move(out));
}

Value to_float(const Value& value, Arguments& arguments) {
  ArgumentReader reader("float", arguments);
  const Value* other = reader.find(0, "default");
  reader.finish();
  if (value.is_undefined()) fail_undefined(value);
  if (value.is_number()) return Value::number(value.as_number("float"));
  if (value.is_text()) {
    const std::string text(strip(value.as_text("float"), std::nullopt, true, true));
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    const bool hex = text.find_first_of("xXpP(") != std::string::npos;
    if (!text.empty() && *end == '\0' && !hex) return Value::number(number);
  }
  return other != nullptr ? *other : Value::number(0.0);
}

std::optional<int64_t> parse_integer(std::string text, int base) {
  text = std::string(strip(text, std::nullopt, true, true));
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.erase(0, 1);
  if (text.size() > 2 && text[0] == '0') {
    const int mark = text[1] | 0x20;
    if ((mark == 'x' && base == 16) || (mark == 'o' && base == 8) || (mark == 'b' && base == 2)) {
      text.erase(0, 2);
    }
  }
  if (text.empty() || base < 2 || base > 36) return std::nullopt;
  int64_t number = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '_' && i > 0 && i + 1 < text.size() && text[i - 1] != '_') continue;
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 10
                      : c >= 'A' && c <= 'Z' ? c - 'A' + 10
                                             : 99;
    if (digit >= base) return std::nullopt;
    if (__builtin_mul_overflow(number, base, &number) ||
        __builtin_add_overflow(number, negative ? -digit : digit, &number)) {
      fail("an integer beyond 64 bits");
    }
  }
  return number;
}

Value to_int(const Value& value, Arguments& arguments) {
  ArgumentReader reader("int", arguments);
  const Value* other = reader.find(0, "default");
  const int64_t base = reader.integer(1, "base", 10);
  reader.finish();
  if (value.is_text()) {
    if (base < 2 || base > 36) fail("int with base " + std::to_string(base));
    if (const auto number = parse_integer(value.as_text("int"), static_cast<int>(base))) {
      return Value::integer(*number);
    }
  }
  if (value.is_integer()) return Value::integer(value.as_integer("int"));
  Arguments nan;
  nan.positional.push_back(Value::number(std::nan("")));
  const double number = std::trunc(to_float(value, nan).as_number("int"));
  if (number > -9.2e18 && number < 9.2e18) return Value::integer(static_cast<int64_t>(number));
  return other != nullptr ? *other : Value::integer(0);
}

Value indent(const Value& value, Arguments& arguments) {
  ArgumentReader reader("indent", arguments);
  const Value* width = reader.find(0, "width");
  const bool first_line = reader.boolean(1, "first", false);
  const bool blank = reader.boolean(2, "blank", false);
  reader.finish();
  std::string space(4, ' ');
  if (width != nullptr && width->is_text()) {
    space = width->as_text("indent");
  } else if (width != nullptr) {
    const int64_t count = std::max<int64_t>(0, width->as_integer("indent"));
    Budget::bytes(static_cast<size_t>(count));
    space.assign(static_cast<size_t>(count), ' ');
  }
  // An empty last line is one too.
  const std::vector<std::string> lines = split_lines(value.as_text("indent") + "\n", false);
  std::string out = first_line ? space : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    Budget::bytes(space.size() + lines[i].size() + 1);
    if (i > 0) out += "\n";
    if (i > 0 && (blank || !lines[i].empty())) out += space;
    out += lines[i];
  }
  return Value::text(std::move(out));
}

Value lower(const Value& value, Arguments&) {
  return make_text(lowercase(str_of(value)));
}

Value upper(const Value& value, Arguments&) {
  return make_text(to_upper(str_of(value)));
}

Value string(const Value& value, Arguments&) {
  return make_text(str_of(value));
}

Value capitalize(const Value& value, Arguments&) {
  return make_text(to_capitalized(str_of(value)));
}

Value replaced(const Value& value, Arguments& arguments) {
  ArgumentReader reader("replace", arguments);
  Arguments all;
  all.positional = {Value::text(str_of(reader.need(0, "old"))),
                    Value::text(str_of(reader.need(1, "new")))};
  const Value* count = reader.find(2, "count");
  if (count != nullptr && !count->is_none()) all.positional.push_back(*count);
  reader.finish();
  return call(get_method(Value::text(str_of(value)), "replace"), all);
}

Value rounded(const Value& value, Arguments& arguments) {
  ArgumentReader reader("round", arguments);
  const int64_t precision = reader.integer(0, "precision", 0);
  const std::string method = reader.text(1, "method", "common");
  reader.finish();
  if (precision < -300 || precision > 300) fail("round to " + std::to_string(precision));
  const double number = value.as_number("round");
  if (method == "common") {
    if (value.is_integer() && precision >= 0) return Value::integer(value.as_integer("round"));
    if (precision < 0) {
      const double unit = std::pow(10.0, static_cast<double>(-precision));
      const double result = std::nearbyint(number / unit) * unit;
      if (value.is_integer()) return Value::integer(static_cast<int64_t>(result));
      return Value::number(result);
    }
    char text[800];  // correctly rounded decimal digits, as Python's round
    std::snprintf(text, sizeof(text), "%.*f", static_cast<int>(precision), number);
    return Value::number(std::strtod(text, nullptr));
  }
  if (method != "ceil" && method != "floor") fail("round by \"" + method + "\"");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = number * scale;
  return Value::number((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

// Capitals behind white space, hyphens and opening brackets (not str.title()).
Value title(const Value& value, Arguments&) {
  std::string out;
  bool first = true;
  const std::string text = str_of(value);
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_utf8(text, at);
    const std::string one = text.substr(at, point.length);
    const bool between = is_python_space(point.value) || one.find_first_of("-({[<") == 0;
    out += first ? to_upper(one) : lowercase(one);
    first = between;
    at += point.length;
  }
  return make_text(std::move(out));
}

Value tojson(const Value& value, Arguments& arguments) {
  return Value::text(to_json(value, arguments));
}

Value trim(const Value& value, Arguments& arguments) {
  ArgumentReader reader("trim", arguments);
  const Value* chars = reader.find(0, "chars");
  reader.finish();
  std::optional<std::string_view> which;
  if (chars != nullptr && !chars->is_none()) which = chars->as_text("trim");
  const std::string text = str_of(value);
  if (which) Budget::search(text.size() * 64, which->size() * 64);
  return make_text(std::string(strip(text, which, true, true)));
}

Value truncate(const Value& value, Arguments& arguments) {
  ArgumentReader reader("truncate", arguments);
  const int64_t wanted = reader.integer(0, "length", 255);
  const bool kill_words = reader.boolean(1, "killwords", false);
  const std::string end = reader.text(2, "end", "...");
  const int64_t leeway = reader.integer(3, "leeway", 5);
  reader.finish();
  const auto tail = static_cast<int64_t>(count_code_points(end));
  if (wanted < tail || leeway < 0) fail("truncate to " + std::to_string(wanted));
  const auto size = value.length();
  if (size && static_cast<int64_t>(*size) - leeway <= wanted) return value;
  const std::string& text = value.as_text("truncate");
  std::string kept = code_points(text, 0, static_cast<size_t>(wanted - tail));
  if (!kill_words) {
    const size_t space = kept.rfind(' ');
    if (space != std::string::npos) kept.resize(space);
  }
  return make_text(kept + end);
}

Value urlencode(const Value& value, Arguments&) {
  if (!value.is_text() && value.length().value_or(0) > 0)
    fail("urlencode of a " + value.type_name());
  std::string out;
  for (char c : value.length() == 0 ? std::string() : str_of(value)) {
    const bool safe = std::isalnum(static_cast<unsigned char>(c)) ||
                      std::string_view("/_.-~").find(c) != std::string_view::npos;
    char text[4] = {c, '\0'};
    if (!safe) std::snprintf(text, sizeof(text), "%%%02X", static_cast<unsigned char>(c));
    out += text;
  }
  return make_text(std::move(out));
}

Value wordcount(const Value& value, Arguments&) {
  int64_t count = 0;
  bool inside = false;
  const std::string text = str_of(value);
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_utf8(text, at);
    const std::string one = text.substr(at, point.length);
    const bool word = point.value == '_' || all_alphanumeric(one);
    if (word && !inside) ++count;
    inside = word;
    at += point.length;
  }
  return Value::integer(count);
}

Value format(const Value& value, Arguments& arguments) {
  if (!arguments.named.empty()) fail("format() with named arguments");
  return Value::text(
      percent_format(str_of(value), Value::list(arguments.positional, SequenceKind::kTuple)));
}

}  // namespace

const std::map<std::string_view, Filter>& text_filters() {
  static const std::map<std::string_view, Filter> table = {
      {"abs", absolute},        {"capitalize", capitalize},
      {"center", center},       {"e", escape},
      {"escape", escape},       {"float", to_float},
      {"format", format},       {"indent", indent},
      {"int", to_int},          {"lower", lower},
      {"replace", replaced},    {"round", rounded},
      {"string", string},       {"title", title},
      {"tojson", tojson},       {"trim", trim},
      {"truncate", truncate},   {"upper", upper},
      {"urlencode", urlencode}, {"wordcount", wordcount}};
  return table;
}

}  // namespace polar::text::jinja
