// Filters of jinja2 3.1 over lists and dicts, and the look-up of all filters. An unknown one is an
// error where it is reached: templates guard what only some environments have.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

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
Value same(const Value& value, Arguments&) {
  return value;
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
      const Value found = attribute_of(item, name);
      out.push_back(found.is_undefined() && other != nullptr ? *other : found);
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

Value reverse(const Value& value, Arguments&) {
  std::vector<Value> all = items_of(value);
  std::reverse(all.begin(), all.end());
  if (!value.is_text()) return Value::generator(std::move(all));
  std::string out;
  for (const Value& item : all) out += item.as_text("reverse");
  return make_text(std::move(out));
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

const std::map<std::string_view, Filter>& filters() {
  static const std::map<std::string_view, Filter> table = {
      {"attr", attribute},
      {"batch", batch},
      {"count", length},
      {"d", fallback},
      {"default", fallback},
      {"dictsort", dictsort},
      {"first", first},
      {"items", items},
      {"join", join},
      {"last", last},
      {"length", length},
      {"list", list},
      {"map", map},
      {"max", largest},
      {"min", smallest},
      {"reject", reject},
      {"rejectattr", rejectattr},
      {"reverse", reverse},
      {"safe", same},
      {"select", select},
      {"selectattr", selectattr},
      {"slice", slice},
      {"sort", sort},
      {"sum", sum},
      {"unique", unique},
  };
  return table;
}

Filter find_filter(std::string_view name) {
  for (const auto* table : {&filters(), &text_filters()}) {
    const auto at = table->find(name);
    if (at != table->end()) return at->second;
  }
  return nullptr;
}

}  // namespace

bool has_filter(std::string_view name) {
  return find_filter(name) != nullptr;
}

Value apply_filter(const std::string& name, const Value& value, Arguments& arguments) {
  const Filter filter = find_filter(name);
  if (filter == nullptr) fail("the unknown filter \"" + name.substr(0, 60) + "\"");
  return filter(value, arguments);
}

}  // namespace polar::text::jinja
