#include "text/jinja_library.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "text/jinja_budget.h"
#include "text/python_text.h"
#include "text/utf8.h"

namespace polar::text::jinja {
namespace {

Value missing(const Value& object, const std::string& name) {
  return Value::undefined("the missing attribute \"" + name.substr(0, 60) + "\" of a " +
                          object.type_name());
}

int64_t floor_divide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return a % b != 0 && ((a < 0) != (b < 0)) ? quotient - 1 : quotient;
}

[[noreturn]] void too_large() {
  fail("an integer beyond 64 bits");
}

Value integer_power(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) fail("zero to a negative power");
    return Value::number(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  if (base == 0 || base == 1) return Value::integer(exponent == 0 ? 1 : base);
  if (base == -1) return Value::integer(exponent % 2 == 0 ? 1 : -1);
  for (int64_t i = 0; i < exponent; ++i) {
    if (__builtin_mul_overflow(result, base, &result)) too_large();
  }
  return Value::integer(result);
}

Value integers(const std::string& op, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == "+") {
    if (__builtin_add_overflow(a, b, &result)) too_large();
  } else if (op == "-") {
    if (__builtin_sub_overflow(a, b, &result)) too_large();
  } else if (op == "*") {
    if (__builtin_mul_overflow(a, b, &result)) too_large();
  } else if (op == "**") {
    return integer_power(a, b);
  } else {
    if (b == 0) fail("a division by zero");
    if (op == "/") return Value::number(static_cast<double>(a) / static_cast<double>(b));
    if (b == -1) return op == "//" ? integers("-", 0, a) : Value::integer(0);
    result = op == "//" ? floor_divide(a, b) : a - floor_divide(a, b) * b;
  }
  return Value::integer(result);
}

Value numbers(const std::string& op, double a, double b) {
  if (op == "+") return Value::number(a + b);
  if (op == "-") return Value::number(a - b);
  if (op == "*") return Value::number(a * b);
  if (op == "**") {
    const double result = std::pow(a, b);
    if (std::isnan(result) && !std::isnan(a) && !std::isnan(b)) fail("a complex number");
    return Value::number(result);
  }
  if (b == 0) fail("a division by zero");
  if (op == "/") return Value::number(a / b);
  double rest = std::fmod(a, b);
  if (rest != 0 && ((rest < 0) != (b < 0))) rest += b;
  if (op == "%") return Value::number(rest == 0 ? std::copysign(0.0, b) : rest);
  const double quotient = (a - rest) / b;
  double whole = std::floor(quotient);
  if (quotient - whole > 0.5) whole += 1;
  return Value::number(quotient == 0 ? std::copysign(0.0, a / b) : whole);
}

Value repeated(const Value& value, int64_t count) {
  const size_t times = count < 0 ? 0 : static_cast<size_t>(count);
  if (const auto* text = value.get<Value::Text>()) {
    if ((*text)->empty()) return value;
    if (times > Budget::kMaxBytes) Budget::bytes(Budget::kMaxBytes + 1);
    Budget::bytes((*text)->size() * times);
    std::string out;
    out.reserve((*text)->size() * times);
    for (size_t i = 0; i < times; ++i) out += **text;
    return Value::text(std::move(out));
  }
  const Sequence& sequence = *value.sequence();
  if (sequence.items.empty()) return value;
  if (times > Budget::kMaxBytes) Budget::bytes(Budget::kMaxBytes + 1);
  Budget::bytes(sequence.items.size() * sizeof(Value) * times);
  std::vector<Value> items;
  for (size_t i = 0; i < times; ++i) {
    items.insert(items.end(), sequence.items.begin(), sequence.items.end());
  }
  return Value::list(std::move(items), sequence.kind);
}

bool is_repeatable(const Value& value) {
  const Sequence* sequence = value.sequence();
  return value.is_text() || (sequence != nullptr && (sequence->kind == SequenceKind::kList ||
                                                     sequence->kind == SequenceKind::kTuple));
}

bool is_indexable(const Value& value) {
  return is_repeatable(value) ||
         (value.sequence() != nullptr && value.sequence()->kind == SequenceKind::kRange);
}

Value loop_attribute(const std::shared_ptr<Loop>& loop, const std::string& name) {
  const auto count = static_cast<int64_t>(loop->items.size());
  const auto index = static_cast<int64_t>(loop->index);
  if (name == "index") return Value::integer(index + 1);
  if (name == "index0") return Value::integer(index);
  if (name == "revindex") return Value::integer(count - index);
  if (name == "revindex0") return Value::integer(count - index - 1);
  if (name == "first") return Value::boolean(index == 0);
  if (name == "last") return Value::boolean(index + 1 == count);
  if (name == "length") return Value::integer(count);
  if (name == "depth") return Value::integer(loop->nesting + 1);
  if (name == "depth0") return Value::integer(loop->nesting);
  if (name == "previtem") {
    return index > 0 ? loop->items[loop->index - 1] : Value::undefined("no previous item");
  }
  if (name == "nextitem") {
    return index + 1 < count ? loop->items[loop->index + 1] : Value::undefined("no next item");
  }
  if (name == "cycle") {
    return Value::function("cycle", [index](Arguments& arguments) {
      if (arguments.positional.empty()) fail("cycle() without items");
      return arguments.positional[static_cast<size_t>(index) % arguments.positional.size()];
    });
  }
  if (name == "changed") {
    return Value::function(
        "changed",
        [loop](Arguments& arguments) {
          Value now = Value::list(arguments.positional, SequenceKind::kTuple);
          const bool changed = !loop->changed || !loop->changed->equals(now);
          loop->changed = std::move(now);
          return Value::boolean(changed);
        },
        loop->depth);
  }
  return Value();
}

// The items of a Python slice over `count` items.
std::vector<size_t> slice_indices(int64_t count, const Value& begin, const Value& end,
                                  const Value& step) {
  const int64_t stride = step.is_none() ? 1 : step.as_integer("a slice");
  if (stride == 0) fail("a slice with step 0");
  const auto clamp = [&](const Value& bound, int64_t fallback) {
    if (bound.is_none()) return fallback;
    int64_t at = bound.as_integer("a slice");
    if (at < 0) at = at < -count ? -1 : at + count;
    if (bound.as_integer("a slice") < -count) at = stride < 0 ? -1 : 0;
    return std::min(at, stride < 0 ? count - 1 : count);
  };
  std::vector<size_t> indices;
  if (stride > 0) {
    const int64_t last = clamp(end, count);
    for (int64_t i = clamp(begin, 0); i < last;) {
      indices.push_back(static_cast<size_t>(i));
      if (stride > last - i) break;
      i += stride;
    }
  } else {
    const int64_t last = clamp(end, -1);
    for (int64_t i = clamp(begin, count - 1); i > last;) {
      indices.push_back(static_cast<size_t>(i));
      if (-(stride + 1) >= i - last) break;
      i += stride;
    }
  }
  Budget::bytes(indices.size() * sizeof(size_t));
  return indices;
}

}  // namespace

const Value* ArgumentReader::find(size_t index, std::string_view name) {
  most_ = std::max(most_, index + 1);
  const Value* found = nullptr;
  if (index < arguments_.positional.size()) found = &arguments_.positional[index];
  for (size_t i = 0; i < arguments_.named.size(); ++i) {
    if (arguments_.named[i].first != name) continue;
    if (found != nullptr) fail("the argument \"" + std::string(name) + "\" twice");
    used_[i] = true;
    found = &arguments_.named[i].second;
  }
  return found;
}

const Value& ArgumentReader::need(size_t index, std::string_view name) {
  const Value* found = find(index, name);
  if (found == nullptr) fail(function_ + "() without \"" + std::string(name) + "\"");
  return *found;
}

bool ArgumentReader::boolean(size_t index, std::string_view name, bool fallback) {
  const Value* found = find(index, name);
  return found == nullptr ? fallback : found->truthy();
}

int64_t ArgumentReader::integer(size_t index, std::string_view name, int64_t fallback) {
  const Value* found = find(index, name);
  return found == nullptr ? fallback : found->as_integer(function_);
}

std::string ArgumentReader::text(size_t index, std::string_view name, std::string_view fallback) {
  const Value* found = find(index, name);
  return found == nullptr ? std::string(fallback) : found->as_text(function_);
}

void ArgumentReader::finish() const {
  for (size_t i = 0; i < used_.size(); ++i) {
    if (!used_[i]) fail(function_ + "() with \"" + arguments_.named[i].first + "\"");
  }
  if (arguments_.positional.size() > most_) {
    fail(function_ + "() with " + std::to_string(arguments_.positional.size()) + " arguments");
  }
}

Value get_attribute(const Value& object, const std::string& name) {
  if (object.is_undefined()) fail_undefined(object);
  if (const auto* space = object.get<std::shared_ptr<Namespace>>()) {
    const Value* found = (*space)->attributes.find(name);
    return found != nullptr ? *found : missing(object, name);
  }
  if (const auto* loop = object.get<std::shared_ptr<Loop>>()) {
    Value found = loop_attribute(*loop, name);
    return found.is_undefined() && !found.get<Undefined>()->hint ? missing(object, name) : found;
  }
  Value method = get_method(object, name);
  if (!method.is_undefined() || method.get<Undefined>()->hint) return method;
  if (const Dict* dict = object.dict()) {
    Budget::steps(dict->items.size());
    if (const Value* found = dict->find(name)) return *found;
  }
  return missing(object, name);
}

Value get_item(const Value& object, const Value& key) {
  if (object.is_undefined()) fail_undefined(object);
  if (const Dict* dict = object.dict()) {
    Budget::steps(dict->items.size());
    if (const Value* found = dict->find(key)) return *found;
  } else if (key.is_integer() && is_indexable(object)) {
    const auto count = static_cast<int64_t>(*object.length());
    int64_t index = key.as_integer("an index");
    if (index < 0) index += count;
    if (index < 0 || index >= count) {
      return Value::undefined("item " + key.str() + " of a " + object.type_name() + " of " +
                              std::to_string(count));
    }
    const auto at = static_cast<size_t>(index);
    if (const Sequence* sequence = object.sequence()) return sequence->items[at];
    return Value::text(code_points(object.as_text("an index"), at, at + 1));
  }
  if (key.is_text()) {
    const std::string& name = key.as_text("an index");
    if (object.get<std::shared_ptr<Namespace>>() != nullptr ||
        object.get<std::shared_ptr<Loop>>() != nullptr) {
      return get_attribute(object, name);
    }
    Value method = get_method(object, name);
    if (!method.is_undefined() || method.get<Undefined>()->hint) return method;
    return missing(object, name);
  }
  return Value::undefined("a missing item of a " + object.type_name());
}

Value get_slice(const Value& object, const Value& begin, const Value& end, const Value& step) {
  if (object.is_undefined()) fail_undefined(object);
  if (!is_indexable(object)) fail("a slice of a " + object.type_name());
  const auto count = static_cast<int64_t>(*object.length());
  const std::vector<size_t> indices = slice_indices(count, begin, end, step);
  if (const Sequence* sequence = object.sequence()) {
    std::vector<Value> items;
    Budget::bytes(indices.size() * sizeof(Value));
    for (size_t at : indices) items.push_back(sequence->items[at]);
    const bool tuple = sequence->kind == SequenceKind::kTuple;
    return Value::list(std::move(items), tuple ? SequenceKind::kTuple : SequenceKind::kList);
  }
  const std::string& text = object.as_text("a slice");
  Budget::bytes(text.size() * 8);
  std::vector<size_t> starts;
  for (size_t at = 0; at < text.size(); at += decode_utf8(text, at).length) starts.push_back(at);
  starts.push_back(text.size());
  std::string out;
  for (size_t at : indices) out += text.substr(starts[at], starts[at + 1] - starts[at]);
  return Value::text(std::move(out));
}

Value call(const Value& function, Arguments& arguments) {
  if (function.is_undefined()) fail_undefined(function);
  const auto* callable = function.get<std::shared_ptr<const Callable>>();
  if (callable == nullptr) fail("a call of a " + function.type_name());
  const auto held = *callable;  // the call may replace the variable that holds it
  return held->call(arguments);
}

Value arithmetic(const std::string& op, const Value& left, const Value& right) {
  if (left.is_undefined()) fail_undefined(left);
  if (op == "%" && left.is_text()) {
    return Value::text(percent_format(left.as_text("%"), right));
  }
  if (right.is_undefined()) fail_undefined(right);
  if (left.is_number() && right.is_number()) {
    if (left.is_integer() && right.is_integer()) {
      return integers(op, left.as_integer(op), right.as_integer(op));
    }
    return numbers(op, left.as_number(op), right.as_number(op));
  }
  if (op == "*" && is_repeatable(left) && right.is_integer()) {
    return repeated(left, right.as_integer(op));
  }
  if (op == "*" && left.is_integer() && is_repeatable(right)) {
    return repeated(right, left.as_integer(op));
  }
  if (op == "+" && left.is_text() && right.is_text()) {
    const std::string &a = left.as_text(op), &b = right.as_text(op);
    Budget::bytes(a.size() + b.size());
    return Value::text(a + b);
  }
  const Sequence *a = left.sequence(), *b = right.sequence();
  if (op == "+" && is_repeatable(left) && is_repeatable(right) && a != nullptr && b != nullptr &&
      a->kind == b->kind) {
    Budget::bytes((a->items.size() + b->items.size()) * sizeof(Value));
    std::vector<Value> items = a->items;
    items.insert(items.end(), b->items.begin(), b->items.end());
    return Value::list(std::move(items), a->kind);
  }
  fail("\"" + op + "\" between " + left.type_name() + " and " + right.type_name());
}

}  // namespace polar::text::jinja
