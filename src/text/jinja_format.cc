// Values as JSON, as json.dumps writes them, and Python's formatting with %.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "text/jinja_budget.h"
#include "text/jinja_library.h"
#include "text/python_text.h"

namespace polar::text::jinja {
namespace {

struct JsonOptions {
  bool ensure_ascii = false, sort_keys = false;
  std::optional<std::string> indent;
  std::string item = ", ", key = ": ";
};

std::string json_key(const Value& key, const JsonOptions& options) {
  if (key.is_text()) return json_string(key.as_text("tojson"), options.ensure_ascii);
  if (key.is_none()) return "\"null\"";
  if (const auto* value = key.get<bool>()) return *value ? "\"true\"" : "\"false\"";
  if (key.is_number()) return "\"" + key.str() + "\"";
  fail("tojson with a key that is a " + key.type_name());
}

void write_json(std::string& out, const Value& value, const JsonOptions& options, size_t depth) {
  Budget::steps(1);
  const size_t start = out.size();
  const auto line = [&](size_t level) {
    if (!options.indent) return;
    Budget::bytes(options.indent->size() * level);
    out += '\n';
    for (size_t i = 0; i < level; ++i) out += *options.indent;
  };
  const Sequence* sequence = value.sequence();
  if (value.is_none()) {
    out += "null";
  } else if (const auto* boolean = value.get<bool>()) {
    out += *boolean ? "true" : "false";
  } else if (const auto* number = value.get<double>()) {
    out += std::isnan(*number)   ? "NaN"
           : std::isinf(*number) ? (*number < 0 ? "-Infinity" : "Infinity")
                                 : polar::text::repr(*number);
  } else if (value.is_number()) {
    out += value.str();
  } else if (value.is_text()) {
    out += json_string(value.as_text("tojson"), options.ensure_ascii);
  } else if (sequence != nullptr &&
             (sequence->kind == SequenceKind::kList || sequence->kind == SequenceKind::kTuple)) {
    out += '[';
    for (size_t i = 0; i < sequence->items.size(); ++i) {
      if (i > 0) out += options.item;
      line(depth + 1);
      write_json(out, sequence->items[i], options, depth + 1);
    }
    if (!sequence->items.empty()) line(depth);
    out += ']';
  } else if (const Dict* dict = value.dict()) {
    auto items = dict->items;
    if (options.sort_keys) {
      std::stable_sort(items.begin(), items.end(),
                       [](const auto& a, const auto& b) { return a.first.compare(b.first) < 0; });
    }
    out += '{';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out += options.item;
      line(depth + 1);
      out += json_key(items[i].first, options) + options.key;
      write_json(out, items[i].second, options, depth + 1);
    }
    if (!items.empty()) line(depth);
    out += '}';
  } else if (value.is_undefined()) {
    fail_undefined(value);
  } else {
    fail("tojson of a " + value.type_name());
  }
  if (sequence == nullptr && value.dict() == nullptr) Budget::bytes(out.size() - start);
}

// The largest number in a format's flags.
int widest(std::string_view flags) {
  int most = 0, number = 0;
  for (char c : flags) {
    number = c >= '0' && c <= '9' ? number * 10 + (c - '0') : 0;
    most = std::max(most, std::min(number, 100000));
    if (number > 100000) break;
  }
  return most;
}

// One conversion: `spec` is "%" and its flags, `kind` the letter.
std::string formatted(std::string spec, char kind, const Value& value) {
  char text[1024];
  if (std::string_view("diuxXo").find(kind) == std::string_view::npos) {
    spec += kind;
    std::snprintf(text, sizeof(text), spec.c_str(), value.as_number("%"));
    return text;
  }
  const bool decimal = kind == 'd' || kind == 'i' || kind == 'u';
  int64_t number = 0;
  if (value.is_integer()) {
    number = value.as_integer("%");
  } else {
    if (!decimal) fail("the format %" + std::string(1, kind) + " of a " + value.type_name());
    const double real = std::trunc(value.as_number("%"));
    if (!(std::fabs(real) < 9.2e18)) fail("an integer beyond 64 bits");
    number = static_cast<int64_t>(real);
  }
  if (!decimal && number < 0) fail("a negative number in base 8 or 16");
  spec += std::string("ll") + (decimal ? 'd' : kind);
  std::snprintf(text, sizeof(text), spec.c_str(), static_cast<long long>(number));
  return text;
}

// %s and %r with a width and a precision.
std::string formatted_text(const std::string& flags, char kind, const Value& value) {
  std::string shown = kind == 's' ? value.str() : value.repr();
  const size_t dot = flags.find('.');
  if (dot != std::string::npos) {
    shown = code_points(shown, 0, std::strtoul(flags.c_str() + dot + 1, nullptr, 10));
  }
  const size_t digits = flags.find_first_of("123456789");
  const bool wide = digits != std::string::npos && (dot == std::string::npos || digits < dot);
  Arguments width;
  width.positional.push_back(Value::integer(wide ? std::atoi(flags.c_str() + digits) : 0));
  const bool left = flags.find('-') != std::string::npos;
  return call(get_method(Value::text(shown), left ? "ljust" : "rjust"), width).str();
}

}  // namespace

std::string to_json(const Value& value, Arguments& arguments) {
  ArgumentReader reader("tojson", arguments);
  JsonOptions options;
  options.ensure_ascii = reader.boolean(0, "ensure_ascii", false);
  if (const Value* indent = reader.find(1, "indent"); indent != nullptr && !indent->is_none()) {
    if (indent->is_text()) {
      options.indent = indent->as_text("tojson");
    } else {
      const int64_t width = std::max<int64_t>(0, indent->as_integer("tojson"));
      Budget::bytes(static_cast<size_t>(width));
      options.indent = std::string(static_cast<size_t>(width), ' ');
    }
    options.item = ",";
  }
  const Value* separators = reader.find(2, "separators");
  if (separators != nullptr && !separators->is_none()) {
    const Sequence* pair = separators->sequence();
    if (pair == nullptr || pair->items.size() != 2) fail("tojson with other than two separators");
    options.item = pair->items[0].as_text("tojson");
    options.key = pair->items[1].as_text("tojson");
  }
  options.sort_keys = reader.boolean(3, "sort_keys", false);
  reader.finish();
  std::string out;
  write_json(out, value, options, 0);
  return out;
}

// %[flags][width][.precision]kind with kinds s r d i u f F g G e E x X o, and %%.
std::string percent_format(const std::string& format, const Value& values) {
  std::string out;
  const Sequence* tuple = values.sequence();
  const bool many = tuple != nullptr && tuple->kind == SequenceKind::kTuple;
  size_t used = 0;
  for (size_t at = 0; at < format.size(); ++at) {
    if (format[at] != '%') {
      out += format[at];
      continue;
    }
    const size_t end = format.find_first_not_of("-+ 0123456789.", at + 1);
    const char kind = end == std::string::npos ? '\0' : format[end];
    const std::string flags = format.substr(at + 1, end == std::string::npos ? 0 : end - at - 1);
    const std::string_view kinds = "%srdiufFgGeExXo";
    const bool known = kind != '\0' && kinds.find(kind) != std::string_view::npos;
    if (!known || flags.size() > 8 || widest(flags) > 500 || (kind == '%' && !flags.empty())) {
      fail("the format %" + format.substr(at + 1, 12));
    }
    at = end;
    if (kind == '%') {
      out += '%';
      continue;
    }
    if (many ? used >= tuple->items.size() : used > 0) fail("a format with too few values");
    const Value& value = many ? tuple->items[used] : values;
    ++used;
    Budget::bytes(1024);
    out += kind == 's' || kind == 'r' ? formatted_text(flags, kind, value)
                                      : formatted("%" + flags, kind, value);
  }
  const bool one = values.is_number() || values.is_text() || values.is_none();
  if (many ? used < tuple->items.size() : used == 0 && one) {
    fail("a format with too many values");
  }
  Budget::bytes(out.size());
  return out;
}

}  // namespace polar::text::jinja
