#pragma once
// The values of a template: Python's, as far as templates see them. Everything but a namespace and
// a generator's position is immutable, as in jinja2's ImmutableSandboxedEnvironment. Private to
// src/text.

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "text/jinja_lexer.h"

namespace polar::text::jinja {

class Value;
struct Loop;
struct Sequence;
struct Dict;
struct Generator;
struct Namespace;
struct Callable;
struct Arguments;

struct Undefined {
  std::shared_ptr<const std::string> hint;  // what the complaint says when it is used
};
struct None {};

/// What a sequence is to Python: it decides how it prints and compares.
enum class SequenceKind { kList, kTuple, kRange, kKeys, kValues, kItems };

class Value {
 public:
  using Text = std::shared_ptr<const std::string>;
  using Storage = std::variant<Undefined, None, bool, int64_t, double, Text,
                               std::shared_ptr<const Sequence>, std::shared_ptr<const Dict>,
                               std::shared_ptr<Generator>, std::shared_ptr<Namespace>,
                               std::shared_ptr<const Callable>, std::shared_ptr<Loop>>;

  Value() = default;  // undefined
  explicit Value(Storage storage) : storage_(std::move(storage)) {}
  static Value none() { return Value(Storage(None{})); }
  static Value boolean(bool value) { return Value(Storage(value)); }
  static Value integer(int64_t value) { return Value(Storage(value)); }
  static Value number(double value) { return Value(Storage(value)); }
  static Value text(std::string value);
  static Value list(std::vector<Value> items, SequenceKind kind = SequenceKind::kList);
  static Value range(std::vector<Value> items, std::string shown);
  static Value dict(Dict dict);
  static Value generator(std::vector<Value> items);
  /// `depth` is that of the values that `call` holds on to.
  static Value function(std::string name, std::function<Value(Arguments&)> call, int depth = 0);
  static Value undefined(std::string hint);
  /// Throws Failure when nested too deeply.
  static Value from_json(const nlohmann::json& json, int depth = 0);
  static Value from_json(const nlohmann::ordered_json& json, int depth = 0);

  template <typename T>
  const T* get() const {
    return std::get_if<T>(&storage_);
  }
  bool is_undefined() const { return get<Undefined>() != nullptr; }
  bool is_none() const { return get<None>() != nullptr; }
  bool is_integer() const { return get<int64_t>() != nullptr || get<bool>() != nullptr; }
  bool is_number() const { return is_integer() || get<double>() != nullptr; }
  bool is_text() const { return get<Text>() != nullptr; }

  /// The text of a string; throws for anything else. `what` names the user of the value.
  const std::string& as_text(std::string_view what) const;
  int64_t as_integer(std::string_view what) const;  // bool counts, as in Python
  double as_number(std::string_view what) const;
  const Sequence* sequence() const;
  const Dict* dict() const;

  /// How deeply lists, dicts and what holds them are nested: 0 for everything flat. Bounded at
  /// construction, so that nothing that follows the nesting runs out of stack.
  int depth() const;

  bool truthy() const;
  std::string str() const;
  std::string repr(int depth = 0) const;
  /// Python's name of the type: "str", "list", ...
  std::string type_name() const;
  bool equals(const Value& other, int depth = 0) const;
  /// Negative, zero or positive; throws where Python raises a TypeError.
  int compare(const Value& other, int depth = 0) const;
  bool contains(const Value& item) const;
  std::optional<size_t> length() const;
  /// The items that a loop would see; a generator is used up. Throws for what cannot be iterated.
  std::vector<Value> iterate() const;
  bool same_as(const Value& other) const;

 private:
  Storage storage_;
};

struct Sequence {
  using Kind = SequenceKind;
  Kind kind = Kind::kList;
  std::vector<Value> items;
  int depth = 0;
  std::string shown;  // repr() of a range
};
/// In insertion order.
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  int depth = 0;

  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  void set(Value key, Value value);
};
/// What map, select and their like give: it can be read once.
struct Generator {
  std::vector<Value> items;
  size_t next = 0;
  int depth = 0;
};
/// The variable `loop` of a for.
struct Loop {
  std::vector<Value> items;
  size_t index = 0;
  int64_t nesting = 0;  // loop.depth0
  std::optional<Value> changed;
  int depth = 0;
};
struct Namespace {
  Dict attributes;
};
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};
struct Callable {
  std::string name;
  std::function<Value(Arguments&)> call;
  int depth = 0;
};

/// Throws the complaint about using an undefined value.
[[noreturn]] void fail_undefined(const Value& value);

/// Throws where Python cannot hash `value`: lists and dicts are no keys.
void require_hashable(const Value& value);

}  // namespace polar::text::jinja
