// Filters of jinja2 3.1 that chat templates use. An unknown one is an error where it is
// reached: templates guard what only some environments have.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

#include "text/jinja_budget.h"
#include "text/jinja_library.h"
#include "text/python_text.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace polar::text::jinja {
namespace {

using Filter = Value (*)(const Value&, Arguments&);

Value make_text(std::string text) {
  Budget::bytes(text.size());
  return Value::text(std::move(text));
}

std::string str_of(const Value& value) {
  std::string text = value.str();
  Budget::bytes(text.size());
  return text;
}

std::vector<Value> items_of(const Value& value) {
  std::vector<Value> items = value.iterate();
  Budget::bytes(items.size() * sizeof(Value));
  Budget::steps(items.size());
  return items;
}

// `item.a.b` of map(attribute="a.b") and its like: subscripts, numbers as indices.
Value attribute_of(const Value& item, const Value& attribute) {
  if (attribute.is_integer()) return get_item(item, attribute);
  Value current = item;
  for (const std::string& part : split(attribute.as_text("an attribute"), ".", -1, false)) {
    const bool index = !part.empty() && all_digits(part) && part.size() < 10;
    current =
        get_item(current, index ? Value::integer(std::atoi(part.c_str())) : Value::text(part));
  }
  return current;
}

// What sort, unique, min and max compare.
struct Key {
  const Value* attribute;
  bool case_sensitive;

  Value operator()(const Value& item) const {
    Value key =
        attribute == nullptr || attribute->is_none() ? item : attribute_of(item, *attribute);
    if (!case_sensitive && key.is_text()) return make_text(lowercase(key.as_text("sort")));
    return key;
  }
};

std::vector<Value> sorted(std::vector<Value> items, const Key& key, bool reverse) {
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items) keyed.emplace_back(key(item), std::move(item));
  const auto less = [reverse](const auto& a, const auto& b) {
    if (a.first.equals(b.first)) return false;  // also two undefined ones
    const int order = a.first.compare(b.first);
    return reverse ? order > 0 : order < 0;
  };
  std::stable_sort(keyed.begin(), keyed.end(), less);
  items.clear();
  for (auto& [_, item] : keyed) items.push_back(std::move(item));
  return items;
}

Value absolute(const Value& value, Arguments&) {
  if (value.is_integer()) {
    const int64_t number = value.as_integer("abs");
    return number < 0 ? arithmetic("-", Value::integer(0), value) : Value::integer(number);
  }
  return Value::number(std::fabs(value.as_number("abs")));
}

Value attribute(const Value& value, Arguments& arguments) {
  ArgumentReader reader("attr", arguments);
  const std::string name = reader.need(0, "name").as_text("attr");
  reader.finish();
  Value found = get_method(value, name);
  const bool known = !found.is_undefined() || found.get<Undefined>()->hint;
  return known ? found : Value::undefined("the missing attribute \"" + name + "\"");
}

Value batch(const Value& value, Arguments& arguments) {
  ArgumentReader reader("batch", arguments);
  const int64_t count = reader.need(0, "linecount").as_integer("batch");
  const Value* fill = reader.find(1, "fill_with");
  reader.finish();
  std::vector<Value> out, row;
  for (Value& item : items_of(value)) {
    if (static_cast<int64_t>(row.size()) == count)
      out.push_back(Value::list(std::exchange(row, {})));
    row.push_back(std::move(item));
  }
  if (!row.empty()) {
    if (fill != nullptr && !fill->is_none() && count > 0) {
      Budget::bytes(static_cast<size_t>(count) * sizeof(Value));
      row.resize(std::max(row.size(), static_cast<size_t>(count)), *fill);
    }
    out.push_back(Value::list(std::move(row)));
  }
  return Value::generator(std::move(out));
}

Value center(const Value& value, Arguments& arguments) {
  ArgumentReader reader("center", arguments);
  Arguments width;
  width.positional.push_back(Value::integer(reader.integer(0, "width", 80)));
  reader.finish();
  return call(get_method(Value::text(str_of(value)), "center"), width);
}

Value fallback(const Value& value, Arguments& arguments) {
  ArgumentReader reader("default", arguments);
  const Value* other = reader.find(0, "default_value");
  const bool boolean = reader.boolean(1, "boolean", false);
  reader.finish();
  if (!value.is_undefined() && (!boolean || value.truthy())) return value;
  return other != nullptr ? *other : Value::text("");
}

Value dictsort(const Value& value, Arguments& arguments) {
  ArgumentReader reader("dictsort", arguments);
  const bool case_sensitive = reader.boolean(0, "case_sensitive", false);
  const std::string by = reader.text(1, "by", "key");
  const bool reverse = reader.boolean(2, "reverse", false);
  reader.finish();
  const Dict* dict = value.dict();
  if (dict == nullptr) fail("dictsort on a " + value.type_name());
  if (by != "key" && by != "value") fail("dictsort by \"" + by + "\"");
  std::vector<Value> pairs;
  for (const auto& [key, item] : dict->items) {
    pairs.push_back(Value::list({key, item}, SequenceKind::kTuple));
  }
  const Value index = Value::integer(by == "key" ? 0 : 1);
  return Value::list(sorted(std::move(pairs), Key{&index, case_sensitive}, reverse));
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

Value first(const Value& value, Arguments&) {
  if (auto* generator = value.get<std::shared_ptr<Generator>>()) {
    Generator& state = **generator;
    return state.next < state.items.size() ? state.items[state.next++]
                                           : Value::undefined("the first of no items");
  }
  std::vector<Value> items = items_of(value);
  return items.empty() ? Value::undefined("the first of no items") : items.front();
}

Value last(const Value& value, Arguments&) {
  if (value.get<std::shared_ptr<Generator>>() != nullptr) fail("last on a generator");
  std::vector<Value> items = items_of(value);
  return items.empty() ? Value::undefined("the last of no items") : items.back();
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

Value items(const Value& value, Arguments&) {
  if (value.is_undefined()) return Value::generator({});
  const Dict* dict = value.dict();
  if (dict == nullptr) fail("items on a " + value.type_name());
  std::vector<Value> pairs;
  for (const auto& [key, item] : dict->items) {
    pairs.push_back(Value::list({key, item}, SequenceKind::kTuple));
  }
  return Value::generator(std::move(pairs));
}

Value join(const Value& value, Arguments& arguments) {
  ArgumentReader reader("join", arguments);
  const Value* separator = reader.find(0, "d");
  const Value* name = reader.find(1, "attribute");
  reader.finish();
  const std::string between = separator == nullptr ? "" : str_of(*separator);
  std::string out;
  bool began = false;
  for (const Value& item : items_of(value)) {
    if (began) out += between;
    began = true;
    Budget::bytes(between.size());
    out += str_of(name == nullptr || name->is_none() ? item : attribute_of(item, *name));
  }
  return Value::text(std::move(out));
}

Value length(const Value& value, Arguments&) {
  const auto count = value.length();
  if (!count) fail("length of a " + value.type_name());
  return Value::integer(static_cast<int64_t>(*count));
}

Value list(const Value& value, Arguments&) {
  return Value::list(items_of(value));
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
Value same(const Value& value, Arguments&) {
  return value;
}
Value capitalize(const Value& value, Arguments&) {
  return make_text(to_capitalized(str_of(value)));
}

// Arguments of map, select and reject behind the name of a filter or test.
Arguments behind(const Arguments& arguments, size_t count) {
  Arguments rest;
  rest.named = arguments.named;
  rest.positional.assign(arguments.positional.begin() + static_cast<ptrdiff_t>(count),
                         arguments.positional.end());
  return rest;
}

Value map(const Value& value, Arguments& arguments) {
  std::vector<Value> out;
  if (!value.truthy()) return Value::generator({});  // also nothing to go over, like None
  if (arguments.positional.empty()) {
    ArgumentReader reader("map", arguments);
    const Value& name = reader.need(0, "attribute");
    const Value* other = reader.find(1, "default");
    reader.finish();
    for (const Value& item : items_of(value)) {
      Value found = attribute_of(item, name);
      out.push_back(found.is_undefined() && other != nullptr ? *other : std::move(found));
    }
  } else {
    const std::string name = arguments.positional[0].as_text("map");
    for (const Value& item : items_of(value)) {
      Arguments rest = behind(arguments, 1);
      out.push_back(apply_filter(name, item, rest));
    }
  }
  return Value::generator(std::move(out));
}

Value choose(const Value& value, Arguments& arguments, bool wanted, bool by_attribute) {
  std::vector<Value> out;
  if (!value.truthy()) return Value::generator({});
  const size_t skip = by_attribute ? 1 : 0;
  if (arguments.positional.size() < skip) fail("selectattr() without an attribute");
  for (const Value& item : items_of(value)) {
    const Value subject = by_attribute ? attribute_of(item, arguments.positional[0]) : item;
    bool good = false;
    if (arguments.positional.size() > skip) {
      const std::string name = arguments.positional[skip].as_text("select");
      Arguments rest = behind(arguments, skip + 1);
      good = apply_test(name, subject, rest);
    } else {
      good = subject.truthy();
    }
    if (good == wanted) out.push_back(item);
  }
  return Value::generator(std::move(out));
}

Value select(const Value& value, Arguments& a) {
  return choose(value, a, true, false);
}
Value reject(const Value& value, Arguments& a) {
  return choose(value, a, false, false);
}
Value selectattr(const Value& value, Arguments& a) {
  return choose(value, a, true, true);
}
Value rejectattr(const Value& value, Arguments& a) {
  return choose(value, a, false, true);
}

Value extreme(const Value& value, Arguments& arguments, int sign) {
  ArgumentReader reader("min", arguments);
  const bool case_sensitive = reader.boolean(0, "case_sensitive", false);
  const Key key{reader.find(1, "attribute"), case_sensitive};
  reader.finish();
  const std::vector<Value> all = items_of(value);
  if (all.empty()) return Value::undefined("the smallest or largest of no items");
  const Value* best = &all.front();
  for (const Value& item : all) {
    if (key(item).compare(key(*best)) * sign < 0) best = &item;
  }
  return *best;
}
Value smallest(const Value& value, Arguments& arguments) {
  return extreme(value, arguments, 1);
}
Value largest(const Value& value, Arguments& arguments) {
  return extreme(value, arguments, -1);
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

Value reverse(const Value& value, Arguments&) {
  std::vector<Value> all = items_of(value);
  std::reverse(all.begin(), all.end());
  if (!value.is_text()) return Value::generator(std::move(all));
  std::string out;
  for (const Value& item : all) out += item.as_text("reverse");
  return make_text(std::move(out));
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

Value slice(const Value& value, Arguments& arguments) {
  ArgumentReader reader("slice", arguments);
  const int64_t count = reader.need(0, "slices").as_integer("slice");
  const Value* fill = reader.find(1, "fill_with");
  reader.finish();
  const std::vector<Value> all = items_of(value);
  if (count <= 0) fail("slice into " + std::to_string(count));
  Budget::bytes(static_cast<size_t>(count) * sizeof(Value));
  const size_t slices = static_cast<size_t>(count), each = all.size() / slices;
  const size_t longer = all.size() % slices;
  std::vector<Value> out;
  size_t at = 0;
  for (size_t i = 0; i < slices; ++i) {
    const size_t end = at + each + (i < longer ? 1 : 0);
    std::vector<Value> part(all.begin() + static_cast<ptrdiff_t>(at),
                            all.begin() + static_cast<ptrdiff_t>(end));
    if (fill != nullptr && !fill->is_none() && i >= longer) part.push_back(*fill);
    out.push_back(Value::list(std::move(part)));
    at = end;
  }
  return Value::generator(std::move(out));
}

Value sort(const Value& value, Arguments& arguments) {
  ArgumentReader reader("sort", arguments);
  const bool reverse = reader.boolean(0, "reverse", false);
  const bool case_sensitive = reader.boolean(1, "case_sensitive", false);
  const Key key{reader.find(2, "attribute"), case_sensitive};
  reader.finish();
  return Value::list(sorted(items_of(value), key, reverse));
}

Value sum(const Value& value, Arguments& arguments) {
  ArgumentReader reader("sum", arguments);
  const Value* name = reader.find(0, "attribute");
  const Value* start = reader.find(1, "start");
  reader.finish();
  Value total = start == nullptr ? Value::integer(0) : *start;
  for (const Value& item : items_of(value)) {
    total = arithmetic("+", total,
                       name == nullptr || name->is_none() ? item : attribute_of(item, *name));
  }
  return total;
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
  const std::string text = value.as_text("truncate");
  std::string kept = code_points(text, 0, static_cast<size_t>(wanted - tail));
  if (!kill_words) {
    const size_t space = kept.rfind(' ');
    if (space != std::string::npos) kept.resize(space);
  }
  return make_text(kept + end);
}

Value unique(const Value& value, Arguments& arguments) {
  ArgumentReader reader("unique", arguments);
  const bool case_sensitive = reader.boolean(0, "case_sensitive", false);
  const Key key{reader.find(1, "attribute"), case_sensitive};
  reader.finish();
  std::vector<Value> seen, out;
  for (const Value& item : items_of(value)) {
    const Value one = key(item);
    require_hashable(one);
    Budget::steps(seen.size());
    const bool known = std::any_of(seen.begin(), seen.end(),
                                   [&](const Value& other) { return other.equals(one); });
    if (known) continue;
    seen.push_back(one);
    out.push_back(item);
  }
  return Value::generator(std::move(out));
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

const std::map<std::string_view, Filter>& filters() {
  static const std::map<std::string_view, Filter> table = {{"abs", absolute},
                                                           {"attr", attribute},
                                                           {"batch", batch},
                                                           {"capitalize", capitalize},
                                                           {"center", center},
                                                           {"count", length},
                                                           {"d", fallback},
                                                           {"default", fallback},
                                                           {"dictsort", dictsort},
                                                           {"e", escape},
                                                           {"escape", escape},
                                                           {"first", first},
                                                           {"float", to_float},
                                                           {"format", format},
                                                           {"indent", indent},
                                                           {"int", to_int},
                                                           {"items", items},
                                                           {"join", join},
                                                           {"last", last},
                                                           {"length", length},
                                                           {"list", list},
                                                           {"lower", lower},
                                                           {"map", map},
                                                           {"max", largest},
                                                           {"min", smallest},
                                                           {"reject", reject},
                                                           {"rejectattr", rejectattr},
                                                           {"replace", replaced},
                                                           {"reverse", reverse},
                                                           {"round", rounded},
                                                           {"safe", same},
                                                           {"select", select},
                                                           {"selectattr", selectattr},
                                                           {"slice", slice},
                                                           {"sort", sort},
                                                           {"string", string},
                                                           {"sum", sum},
                                                           {"title", title},
                                                           {"tojson", tojson},
                                                           {"trim", trim},
                                                           {"truncate", truncate},
                                                           {"unique", unique},
                                                           {"upper", upper},
                                                           {"urlencode", urlencode},
                                                           {"wordcount", wordcount}};
  return table;
}

}  // namespace

bool has_filter(std::string_view name) {
  return filters().contains(name);
}
Value apply_filter(const std::string& name, const Value& value, Arguments& arguments) {
  const auto at = filters().find(name);
  if (at == filters().end()) fail("the unknown filter \"" + name.substr(0, 60) + "\"");
  return at->second(value, arguments);
}

}  // namespace polar::text::jinja
