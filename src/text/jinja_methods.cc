// Methods of strings, lists and dicts. What would change a value is unsafe to jinja2's immutable
// sandbox: using it is an error.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "text/jinja_budget.h"
#include "text/jinja_library.h"
#include "text/python_text.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace polar::text::jinja {
namespace {

using TextMethod = Value (*)(const std::string&, Arguments&);

Value make_text(std::string text) {
  Budget::bytes(text.size());
  return Value::text(std::move(text));
}

Value make_list(std::vector<std::string> parts, SequenceKind kind = SequenceKind::kList) {
  std::vector<Value> items;
  Budget::bytes(parts.size() * 64);
  for (std::string& part : parts) items.push_back(make_text(std::move(part)));
  return Value::list(std::move(items), kind);
}

template <std::string (*function)(std::string_view)>
Value map_text(const std::string& text, Arguments& arguments) {
  ArgumentReader("a method", arguments).finish();
  return make_text(function(text));
}

template <bool (*predicate)(std::string_view)>
Value test_text(const std::string& text, Arguments& arguments) {
  ArgumentReader("a method", arguments).finish();
  return Value::boolean(predicate(text));
}

template <bool left, bool right>
Value stripped(const std::string& text, Arguments& arguments) {
  ArgumentReader reader("strip", arguments);
  const Value* chars = reader.find(0, "chars");
  reader.finish();
  std::optional<std::string_view> which;
  if (chars != nullptr && !chars->is_none()) which = chars->as_text("strip");
  if (which) Budget::search(text.size() * 64, which->size() * 64);
  return make_text(std::string(strip(text, which, left, right)));
}

template <bool from_right>
Value split_text(const std::string& text, Arguments& arguments) {
  ArgumentReader reader("split", arguments);
  const Value* separator = reader.find(0, "sep");
  const int64_t limit = reader.integer(1, "maxsplit", -1);
  reader.finish();
  std::optional<std::string_view> which;
  if (separator != nullptr && !separator->is_none()) which = separator->as_text("split");
  if (which && which->empty()) fail("split() at an empty string");
  if (which) Budget::search(text.size(), which->size());
  Budget::bytes(text.size() * 8);
  return make_list(split(text, which, limit, from_right));
}

Value split_into_lines(const std::string& text, Arguments& arguments) {
  ArgumentReader reader("splitlines", arguments);
  const bool keep = reader.boolean(0, "keepends", false);
  reader.finish();
  return make_list(split_lines(text, keep));
}

template <bool at_end>
Value has_affix(const std::string& text, Arguments& arguments) {
  ArgumentReader reader(at_end ? "endswith" : "startswith", arguments);
  const Value& affix = reader.need(0, "prefix");
  const Value* from = reader.find(1, "start");
  const Value* to = reader.find(2, "end");
  reader.finish();
  std::string part = text;
  if (from != nullptr || to != nullptr) {
    part = get_slice(Value::text(text), from != nullptr ? *from : Value::none(),
                     to != nullptr ? *to : Value::none(), Value::none())
               .as_text("startswith");
  }
  const auto matches = [&](const Value& one) {
    const std::string& wanted = one.as_text("startswith");
    return at_end ? part.ends_with(wanted) : part.starts_with(wanted);
  };
  const Sequence* tuple = affix.sequence();
  if (tuple != nullptr && tuple->kind == SequenceKind::kTuple) {
    return Value::boolean(std::any_of(tuple->items.begin(), tuple->items.end(), matches));
  }
  return Value::boolean(matches(affix));
}

size_t occurrences(const std::string& text, const std::string& part) {
  if (part.empty()) return count_code_points(text) + 1;
  Budget::search(text.size(), part.size());
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos;
       at = text.find(part, at + part.size())) {
    ++count;
  }
  return count;
}

Value replace_text(const std::string& text, Arguments& arguments) {
  ArgumentReader reader("replace", arguments);
  const std::string from = reader.need(0, "old").as_text("replace");
  const std::string to = reader.need(1, "new").as_text("replace");
  const int64_t limit = reader.integer(2, "count", -1);
  reader.finish();
  const size_t count = occurrences(text, from);
  if (to.size() > Budget::kMaxBytes / (count + 1)) Budget::bytes(Budget::kMaxBytes + 1);
  Budget::bytes(count * to.size() + text.size());
  return Value::text(replace(text, from, to, limit));
}

Value join_text(const std::string& text, Arguments& arguments) {
  ArgumentReader reader("join", arguments);
  const std::vector<Value> parts = reader.need(0, "iterable").iterate();
  reader.finish();
  std::string out;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string& part = parts[i].as_text("join");
    Budget::bytes(text.size() + part.size() + sizeof(Value));
    if (i > 0) out += text;
    out += part;
  }
  return Value::text(std::move(out));
}

// str.find and str.index, by code points.
template <bool from_right, bool must>
Value find_text(const std::string& text, Arguments& arguments) {
  ArgumentReader reader("find", arguments);
  const std::string part = reader.need(0, "sub").as_text("find");
  const int64_t start = reader.integer(1, "start", 0);
  reader.finish();
  Budget::search(text.size(), part.size());
  const auto total = static_cast<int64_t>(count_code_points(text));
  const int64_t first = std::max<int64_t>(0, start < 0 ? start + total : start);
  size_t at = std::string::npos;
  if (first <= total) {
    const size_t offset = byte_offset(text, static_cast<size_t>(first));
    at = from_right ? text.rfind(part) : text.find(part, offset);
    if (from_right && at != std::string::npos && at < offset) at = std::string::npos;
  }
  if (at == std::string::npos) {
    if (must) fail("index() of a string that is not there");
    return Value::integer(-1);
  }
  return Value::integer(
      static_cast<int64_t>(count_code_points(std::string_view(text).substr(0, at))));
}

Value count_text(const std::string& text, Arguments& arguments) {
  ArgumentReader reader("count", arguments);
  const std::string part = reader.need(0, "sub").as_text("count");
  reader.finish();
  return Value::integer(static_cast<int64_t>(occurrences(text, part)));
}

template <bool at_end>
Value remove_affix(const std::string& text, Arguments& arguments) {
  ArgumentReader reader("removeprefix", arguments);
  const std::string affix = reader.need(0, "prefix").as_text("removeprefix");
  reader.finish();
  if (at_end) {
    const bool has = !affix.empty() && text.ends_with(affix);
    return make_text(text.substr(0, text.size() - (has ? affix.size() : 0)));
  }
  return make_text(text.substr(text.starts_with(affix) ? affix.size() : 0));
}

template <bool from_right>
Value partition(const std::string& text, Arguments& arguments) {
  ArgumentReader reader("partition", arguments);
  const std::string separator = reader.need(0, "sep").as_text("partition");
  reader.finish();
  if (separator.empty()) fail("partition() at an empty string");
  Budget::search(text.size(), separator.size());
  const size_t at = from_right ? text.rfind(separator) : text.find(separator);
  if (at == std::string::npos) {
    return from_right ? make_list({"", "", text}, SequenceKind::kTuple)
                      : make_list({text, "", ""}, SequenceKind::kTuple);
  }
  return make_list({text.substr(0, at), separator, text.substr(at + separator.size())},
                   SequenceKind::kTuple);
}

// center, ljust, rjust: `share` of the padding goes to the left.
enum class Side { kLeft, kRight, kBoth };

template <Side side>
Value pad(const std::string& text, Arguments& arguments) {
  ArgumentReader reader("center", arguments);
  const int64_t width = reader.need(0, "width").as_integer("center");
  const std::string fill = reader.text(1, "fillchar", " ");
  reader.finish();
  if (count_code_points(fill) != 1) fail("a fill that is not one character");
  const auto length = static_cast<int64_t>(count_code_points(text));
  if (width <= length) return make_text(text);
  const int64_t padding = width - length;
  Budget::bytes(static_cast<size_t>(padding) * fill.size());
  int64_t left = side == Side::kLeft ? padding : 0;
  if (side == Side::kBoth) left = padding / 2 + (padding & width & 1);
  std::string out;
  for (int64_t i = 0; i < left; ++i) out += fill;
  out += text;
  for (int64_t i = left; i < padding; ++i) out += fill;
  return make_text(std::move(out));
}

Value zero_fill(const std::string& text, Arguments& arguments) {
  ArgumentReader reader("zfill", arguments);
  const int64_t width = reader.need(0, "width").as_integer("zfill");
  reader.finish();
  const auto length = static_cast<int64_t>(count_code_points(text));
  if (width <= length) return make_text(text);
  Budget::bytes(static_cast<size_t>(width - length));
  const size_t sign = text.starts_with('-') || text.starts_with('+') ? 1 : 0;
  return make_text(text.substr(0, sign) + std::string(static_cast<size_t>(width - length), '0') +
                   text.substr(sign));
}

// str.format with plain fields: {}, {0}, {name}; {{ and }} stand for themselves.
Value format_text(const std::string& text, Arguments& arguments) {
  std::string out;
  size_t automatic = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (c != '{' && c != '}') {
      out += c;
      continue;
    }
    if (at + 1 < text.size() && text[at + 1] == c) {
      out += c;
      ++at;
      continue;
    }
    const size_t close = text.find('}', at);
    if (c == '}' || close == std::string::npos) fail("format() with an unpaired brace");
    const std::string field = text.substr(at + 1, close - at - 1);
    const Value* value = nullptr;
    if (field.empty() || all_digits(field)) {
      const size_t index = field.empty() ? automatic++ : std::strtoul(field.c_str(), nullptr, 10);
      if (index < arguments.positional.size()) value = &arguments.positional[index];
    } else {
      for (const auto& [name, one] : arguments.named) {
        if (name == field) value = &one;
      }
    }
    if (value == nullptr) fail("format() with the field {" + field.substr(0, 60) + "}");
    out += value->str();
    Budget::bytes(out.size() - at);
    at = close;
  }
  return make_text(std::move(out));
}

const std::map<std::string_view, TextMethod>& text_methods() {
  static const std::map<std::string_view, TextMethod> table = {
      {"upper", map_text<to_upper>},
      {"lower", map_text<lowercase>},
      {"casefold", map_text<lowercase>},
      {"title", map_text<to_title>},
      {"capitalize", map_text<to_capitalized>},
      {"swapcase", map_text<swap_case>},
      {"isalpha", test_text<all_alphabetic>},
      {"isalnum", test_text<all_alphanumeric>},
      {"isdigit", test_text<all_digits>},
      {"isspace", test_text<all_spaces>},
      {"isupper", test_text<is_upper>},
      {"islower", test_text<is_lower>},
      {"strip", stripped<true, true>},
      {"lstrip", stripped<true, false>},
      {"rstrip", stripped<false, true>},
      {"split", split_text<false>},
      {"rsplit", split_text<true>},
      {"splitlines", split_into_lines},
      {"startswith", has_affix<false>},
      {"endswith", has_affix<true>},
      {"replace", replace_text},
      {"join", join_text},
      {"find", find_text<false, false>},
      {"rfind", find_text<true, false>},
      {"index", find_text<false, true>},
      {"rindex", find_text<true, true>},
      {"count", count_text},
      {"removeprefix", remove_affix<false>},
      {"removesuffix", remove_affix<true>},
      {"partition", partition<false>},
      {"rpartition", partition<true>},
      {"ljust", pad<Side::kRight>},
      {"rjust", pad<Side::kLeft>},
      {"center", pad<Side::kBoth>},
      {"zfill", zero_fill},
      {"format", format_text}};
  return table;
}

Value list_method(const Value& object, const std::string& name) {
  const auto held = *object.get<std::shared_ptr<const Sequence>>();
  const bool is_list = held->kind == SequenceKind::kList;
  if (held->kind > SequenceKind::kRange) return Value();
  if (is_list) {
    for (const char* unsafe :
         {"append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"}) {
      if (name == unsafe) return Value::undefined("the unsafe method " + name + "() of a list");
    }
    if (name == "copy") {
      return Value::function(
          "copy", [object](Arguments&) { return object; }, object.depth());
    }
  }
  if (name != "index" && name != "count") return Value();
  return Value::function(
      name,
      [held, index = name == "index"](Arguments& arguments) {
        ArgumentReader reader("index", arguments);
        const Value& wanted = reader.need(0, "value");
        reader.finish();
        Budget::steps(held->items.size());
        int64_t count = 0;
        for (size_t i = 0; i < held->items.size(); ++i) {
          if (!held->items[i].equals(wanted)) continue;
          if (index) return Value::integer(static_cast<int64_t>(i));
          ++count;
        }
        if (index) fail("index() of an item that is not there");
        return Value::integer(count);
      },
      object.depth());
}

Value dict_get(const Dict& dict, Arguments& arguments) {
  ArgumentReader reader("get", arguments);
  const Value& key = reader.need(0, "key");
  const Value* other = reader.find(1, "default");
  reader.finish();
  Budget::steps(dict.items.size());
  if (const Value* found = dict.find(key)) return *found;
  return other != nullptr ? *other : Value::none();
}

Value dict_view(const Dict& dict, SequenceKind kind) {
  std::vector<Value> items;
  Budget::bytes(dict.items.size() * 64);
  for (const auto& [key, value] : dict.items) {
    if (kind == SequenceKind::kKeys) {
      items.push_back(key);
    } else if (kind == SequenceKind::kValues) {
      items.push_back(value);
    } else {
      items.push_back(Value::list({key, value}, SequenceKind::kTuple));
    }
  }
  return Value::list(std::move(items), kind);
}

Value dict_method(const Value& object, const std::string& name) {
  const auto held = *object.get<std::shared_ptr<const Dict>>();
  for (const char* unsafe : {"clear", "pop", "popitem", "setdefault", "update"}) {
    if (name == unsafe) return Value::undefined("the unsafe method " + name + "() of a dict");
  }
  if (name == "get") {
    return Value::function(
        name, [held](Arguments& arguments) { return dict_get(*held, arguments); }, object.depth());
  }
  if (name == "copy") {
    return Value::function(
        name, [object](Arguments&) { return object; }, object.depth());
  }
  const std::pair<std::string_view, SequenceKind> views[] = {{"keys", SequenceKind::kKeys},
                                                             {"values", SequenceKind::kValues},
                                                             {"items", SequenceKind::kItems}};
  for (const auto& [view, kind] : views) {
    if (name != view) continue;
    return Value::function(
        name, [held, kind = kind](Arguments&) { return dict_view(*held, kind); }, object.depth());
  }
  return Value();
}

}  // namespace

Value get_method(const Value& object, const std::string& name) {
  if (name.starts_with("_")) return Value();
  if (object.is_text()) {
    const auto& methods = text_methods();
    const auto at = methods.find(name);
    if (at == methods.end()) return Value();
    return Value::function(name, [text = *object.get<Value::Text>(), method = at->second](
                                     Arguments& arguments) { return method(*text, arguments); });
  }
  if (object.sequence() != nullptr) return list_method(object, name);
  if (object.dict() != nullptr) return dict_method(object, name);
  return Value();
}

}  // namespace polar::text::jinja
