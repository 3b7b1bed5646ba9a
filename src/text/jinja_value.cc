#include "text/jinja_value.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "text/jinja_budget.h"
#include "text/python_text.h"
#include "text/utf8.h"

namespace polar::text::jinja {
namespace {

constexpr int kMaxDepth = 200;  // of nested lists and dicts

// Every step into a nested value passes here: shared parts are counted each time they are visited.
void check_depth(int depth) {
  Budget::steps(1);
  if (depth > kMaxDepth) fail("values nested deeper than " + std::to_string(kMaxDepth));
}

int depth_of(const std::vector<Value>& items) {
  int depth = 1;
  for (const Value& item : items) depth = std::max(depth, item.depth() + 1);
  check_depth(depth);
  return depth;
}

template <typename Json>
Value convert(const Json& json, int depth) {
  check_depth(depth);
  if (json.is_null()) return Value::none();
  if (json.is_boolean()) return Value::boolean(json.template get<bool>());
  if (json.is_number_unsigned() && json.template get<uint64_t>() > uint64_t{INT64_MAX}) {
    return Value::number(json.template get<double>());
  }
  if (json.is_number_integer()) return Value::integer(json.template get<int64_t>());
  if (json.is_number()) return Value::number(json.template get<double>());
  if (json.is_string()) {
    return Value::text(to_valid_utf8(json.template get_ref<const std::string&>()));
  }
  if (json.is_array()) {
    std::vector<Value> items;
    items.reserve(json.size());
    for (const auto& item : json) items.push_back(convert(item, depth + 1));
    return Value::list(std::move(items));
  }
  Dict dict;
  for (const auto& [key, value] : json.items()) {
    dict.items.emplace_back(Value::text(to_valid_utf8(key)), convert(value, depth + 1));
  }
  return Value::dict(std::move(dict));
}

std::string joined(const std::vector<Value>& items, int depth) {
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += ", ";
    out += items[i].repr(depth + 1);
    if (out.size() > Budget::kMaxBytes) Budget::bytes(out.size());
  }
  return out;
}

std::string repr_of(const Sequence& sequence, int depth) {
  if (sequence.kind == SequenceKind::kRange) return sequence.shown;
  std::string inside = joined(sequence.items, depth);
  switch (sequence.kind) {
    case Sequence::Kind::kList:
      return "[" + inside + "]";
    case Sequence::Kind::kTuple:
      return "(" + inside + (sequence.items.size() == 1 ? ",)" : ")");
    case Sequence::Kind::kRange:
      break;
    case Sequence::Kind::kKeys:
      return "dict_keys([" + inside + "])";
    case Sequence::Kind::kValues:
      return "dict_values([" + inside + "])";
    case Sequence::Kind::kItems:
      return "dict_items([" + inside + "])";
  }
  return inside;
}

std::string repr_of(const Dict& dict, int depth) {
  std::string out = "{";
  for (size_t i = 0; i < dict.items.size(); ++i) {
    if (i > 0) out += ", ";
    out += dict.items[i].first.repr(depth + 1) + ": " + dict.items[i].second.repr(depth + 1);
  }
  return out + "}";
}

}  // namespace

void fail_undefined(const Value& value) {
  const auto* undefined = value.get<Undefined>();
  fail(undefined != nullptr && undefined->hint ? *undefined->hint : "an undefined value");
}

void require_hashable(const Value& value) {
  const Sequence* sequence = value.sequence();
  const bool list = sequence != nullptr && sequence->kind == SequenceKind::kList;
  if (list || value.dict() != nullptr) fail("a " + value.type_name() + " as a key");
  if (sequence == nullptr) return;
  for (const Value& item : sequence->items) require_hashable(item);
}

const Value* Dict::find(const Value& key) const {
  for (const auto& [name, value] : items) {
    if (name.equals(key)) return &value;
  }
  return nullptr;
}

const Value* Dict::find(std::string_view key) const {
  for (const auto& [name, value] : items) {
    const auto* text = name.get<Value::Text>();
    if (text != nullptr && **text == key) return &value;
  }
  return nullptr;
}

void Dict::set(Value key, Value value) {
  for (auto& [name, old] : items) {
    if (name.equals(key)) {
      old = std::move(value);
      return;
    }
  }
  items.emplace_back(std::move(key), std::move(value));
}

Value Value::text(std::string value) {
  return Value(Storage(std::make_shared<const std::string>(std::move(value))));
}
Value Value::list(std::vector<Value> items, SequenceKind kind) {
  const int depth = depth_of(items);
  return Value(
      Storage(std::make_shared<const Sequence>(Sequence{kind, std::move(items), depth, {}})));
}
Value Value::range(std::vector<Value> items, std::string shown) {
  Sequence range{SequenceKind::kRange, std::move(items), 1, std::move(shown)};
  return Value(Storage(std::make_shared<const Sequence>(std::move(range))));
}
Value Value::dict(Dict dict) {
  dict.depth = 1;
  for (const auto& [key, value] : dict.items) {
    dict.depth = std::max({dict.depth, key.depth() + 1, value.depth() + 1});
  }
  check_depth(dict.depth);
  return Value(Storage(std::make_shared<const Dict>(std::move(dict))));
}
Value Value::generator(std::vector<Value> items) {
  const int depth = depth_of(items);
  return Value(Storage(std::make_shared<Generator>(Generator{std::move(items), 0, depth})));
}
Value Value::function(std::string name, std::function<Value(Arguments&)> call, int depth) {
  check_depth(depth + 1);
  return Value(Storage(
      std::make_shared<const Callable>(Callable{std::move(name), std::move(call), depth + 1})));
}
int Value::depth() const {
  if (const Sequence* value = sequence()) return value->depth;
  if (const Dict* value = dict()) return value->depth;
  if (const auto* value = get<std::shared_ptr<Generator>>()) return (*value)->depth;
  if (const auto* value = get<std::shared_ptr<const Callable>>()) return (*value)->depth;
  if (const auto* value = get<std::shared_ptr<Loop>>()) return (*value)->depth;
  return 0;
}
Value Value::undefined(std::string hint) {
  return Value(Storage(Undefined{std::make_shared<const std::string>(std::move(hint))}));
}
Value Value::from_json(const nlohmann::json& json, int depth) {
  return convert(json, depth);
}
Value Value::from_json(const nlohmann::ordered_json& json, int depth) {
  return convert(json, depth);
}

const std::string& Value::as_text(std::string_view what) const {
  if (is_undefined()) fail_undefined(*this);
  if (const auto* text = get<Text>()) return **text;
  fail(std::string(what) + " on a " + type_name() + " instead of a string");
}

int64_t Value::as_integer(std::string_view what) const {
  if (is_undefined()) fail_undefined(*this);
  if (const auto* value = get<int64_t>()) return *value;
  if (const auto* value = get<bool>()) return *value ? 1 : 0;
  fail(std::string(what) + " on a " + type_name() + " instead of an integer");
}

double Value::as_number(std::string_view what) const {
  if (const auto* value = get<double>()) return *value;
  return static_cast<double>(as_integer(what));
}

const Sequence* Value::sequence() const {
  const auto* pointer = get<std::shared_ptr<const Sequence>>();
  return pointer == nullptr ? nullptr : pointer->get();
}

const Dict* Value::dict() const {
  const auto* pointer = get<std::shared_ptr<const Dict>>();
  return pointer == nullptr ? nullptr : pointer->get();
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (const auto* value = get<bool>()) return *value;
  if (const auto* value = get<int64_t>()) return *value != 0;
  if (const auto* value = get<double>()) return *value != 0.0;
  if (const auto* value = get<Text>()) return !(*value)->empty();
  if (const Sequence* value = sequence()) return !value->items.empty();
  if (const Dict* value = dict()) return !value->items.empty();
  return true;
}

std::string Value::str() const {
  if (const auto* value = get<Text>()) return **value;
  if (is_undefined()) return std::string();
  return repr();
}

std::string Value::repr(int depth) const {
  check_depth(depth);
  if (is_undefined()) return "Undefined";
  if (is_none()) return "None";
  if (const auto* value = get<bool>()) return *value ? "True" : "False";
  if (const auto* value = get<int64_t>()) return std::to_string(*value);
  if (const auto* value = get<double>()) return polar::text::repr(*value);
  if (const auto* value = get<Text>()) return polar::text::repr(**value);
  if (const Sequence* value = sequence()) return repr_of(*value, depth);
  if (const Dict* value = dict()) return repr_of(*value, depth);
  if (const auto* value = get<std::shared_ptr<Namespace>>()) {
    return "<Namespace " + repr_of((*value)->attributes, depth) + ">";
  }
  if (const auto* value = get<std::shared_ptr<const Callable>>()) return "<" + (*value)->name + ">";
  return "<" + type_name() + ">";
}

std::string Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (get<bool>() != nullptr) return "bool";
  if (get<int64_t>() != nullptr) return "int";
  if (get<double>() != nullptr) return "float";
  if (is_text()) return "str";
  if (const Sequence* value = sequence()) {
    switch (value->kind) {
      case Sequence::Kind::kList:
        return "list";
      case Sequence::Kind::kTuple:
        return "tuple";
      case Sequence::Kind::kRange:
        return "range";
      case Sequence::Kind::kKeys:
        return "dict_keys";
      case Sequence::Kind::kValues:
        return "dict_values";
      case Sequence::Kind::kItems:
        return "dict_items";
    }
  }
  if (dict() != nullptr) return "dict";
  if (get<std::shared_ptr<Generator>>() != nullptr) return "generator";
  if (get<std::shared_ptr<Namespace>>() != nullptr) return "Namespace";
  if (get<std::shared_ptr<const Callable>>() != nullptr) return "function";
  return "LoopContext";
}

bool Value::same_as(const Value& other) const {
  if (storage_.index() != other.storage_.index()) return false;
  if (is_undefined() || is_none()) return true;
  if (is_number() || is_text()) return equals(other);
  if (sequence() != nullptr) return sequence() == other.sequence();
  if (dict() != nullptr) return dict() == other.dict();
  if (const auto* pointer = get<std::shared_ptr<Namespace>>()) {
    return *pointer == *other.get<std::shared_ptr<Namespace>>();
  }
  if (const auto* pointer = get<std::shared_ptr<const Callable>>()) {
    return *pointer == *other.get<std::shared_ptr<const Callable>>();
  }
  return false;
}

bool Value::equals(const Value& other, int depth) const {
  check_depth(depth);
  if (is_number() && other.is_number()) {
    if (is_integer() && other.is_integer()) return as_integer("==") == other.as_integer("==");
    return as_number("==") == other.as_number("==");
  }
  if (storage_.index() != other.storage_.index()) return false;
  if (is_text()) return **get<Text>() == **other.get<Text>();
  if (const Sequence* a = sequence()) {
    const Sequence* b = other.sequence();
    if (a->kind != b->kind || a->items.size() != b->items.size()) return false;
    for (size_t i = 0; i < a->items.size(); ++i) {
      if (!a->items[i].equals(b->items[i], depth + 1)) return false;
    }
    return true;
  }
  if (const Dict* a = dict()) {
    const Dict* b = other.dict();
    if (a->items.size() != b->items.size()) return false;
    for (const auto& [key, value] : a->items) {
      const Value* match = b->find(key);
      if (match == nullptr || !value.equals(*match, depth + 1)) return false;
    }
    return true;
  }
  return same_as(other);
}

int Value::compare(const Value& other, int depth) const {
  check_depth(depth);
  if (is_undefined()) fail_undefined(*this);
  if (other.is_undefined()) fail_undefined(other);
  if (is_number() && other.is_number()) {
    if (is_integer() && other.is_integer()) {
      const int64_t a = as_integer("<"), b = other.as_integer("<");
      return a < b ? -1 : a > b ? 1 : 0;
    }
    const double a = as_number("<"), b = other.as_number("<");
    return a < b ? -1 : a > b ? 1 : 0;
  }
  if (is_text() && other.is_text()) return (*get<Text>())->compare(**other.get<Text>());
  const Sequence *a = sequence(), *b = other.sequence();
  if (a == nullptr || b == nullptr || a->kind != b->kind || a->kind > SequenceKind::kTuple) {
    fail("a comparison of " + type_name() + " and " + other.type_name());
  }
  for (size_t i = 0; i < a->items.size() && i < b->items.size(); ++i) {
    if (a->items[i].equals(b->items[i], depth + 1)) continue;
    return a->items[i].compare(b->items[i], depth + 1);
  }
  return a->items.size() < b->items.size() ? -1 : a->items.size() > b->items.size() ? 1 : 0;
}

bool Value::contains(const Value& item) const {
  if (is_undefined()) return false;
  if (const auto* text = get<Text>()) {
    return (*text)->find(item.as_text("in")) != std::string::npos;
  }
  if (const Dict* value = dict()) {
    require_hashable(item);
    return value->find(item) != nullptr;
  }
  if (get<std::shared_ptr<Generator>>() != nullptr) {
    for (const Value& one : iterate()) {
      if (one.equals(item)) return true;
    }
    return false;
  }
  const Sequence* value = sequence();
  if (value == nullptr) fail("\"in\" on a " + type_name());
  for (const Value& one : value->items) {
    if (one.equals(item)) return true;
  }
  return false;
}

std::optional<size_t> Value::length() const {
  if (is_undefined()) return 0;
  if (const auto* text = get<Text>()) return count_code_points(**text);
  if (const Sequence* value = sequence()) return value->items.size();
  if (const Dict* value = dict()) return value->items.size();
  return std::nullopt;
}

std::vector<Value> Value::iterate() const {
  if (is_undefined()) return {};
  if (const Sequence* value = sequence()) return value->items;
  std::vector<Value> items;
  if (const Dict* value = dict()) {
    for (const auto& [key, _] : value->items) items.push_back(key);
    return items;
  }
  if (const auto* text = get<Text>()) {
    for (size_t at = 0; at < (*text)->size();) {
      const size_t length = decode_utf8(**text, at).length;
      items.push_back(Value::text((*text)->substr(at, length)));
      at += length;
    }
    return items;
  }
  if (const auto* generator = get<std::shared_ptr<Generator>>()) {
    Generator& state = **generator;
    items.assign(state.items.begin() + static_cast<ptrdiff_t>(state.next), state.items.end());
    state.next = state.items.size();
    return items;
  }
  fail("a loop over a " + type_name());
}

}  // namespace polar::text::jinja
