// Tests of jinja2 3.1 (`x is odd`). An unknown one is an error where it is reached.

#include <map>

#include "text/jinja_library.h"
#include "text/python_text.h"

namespace polar::text::jinja {
namespace {

using Test = bool (*)(const Value&, const Value&);

bool is_iterable(const Value& value) {
  return value.is_undefined() || value.is_text() || value.sequence() != nullptr ||
         value.dict() != nullptr || value.get<std::shared_ptr<Generator>>() != nullptr ||
         value.get<std::shared_ptr<Loop>>() != nullptr;
}

bool is_sequence(const Value& value) {
  const Sequence* sequence = value.sequence();
  const bool view = sequence != nullptr && sequence->kind > SequenceKind::kRange;
  return value.is_undefined() || value.is_text() || value.dict() != nullptr ||
         (sequence != nullptr && !view);
}

struct NamedTest {
  int arguments;
  Test test;
};

bool leaves(const Value& a, const Value& b, int64_t rest) {
  return arithmetic("%", a, b).equals(Value::integer(rest));
}

const std::map<std::string_view, NamedTest>& tests() {
  using V = const Value&;
  static const NamedTest equal = {1, [](V a, V b) { return a.equals(b); }};
  static const NamedTest differs = {1, [](V a, V b) { return !a.equals(b); }};
  static const NamedTest less = {1, [](V a, V b) { return a.compare(b) < 0; }};
  static const NamedTest at_most = {1, [](V a, V b) { return a.compare(b) <= 0; }};
  static const NamedTest greater = {1, [](V a, V b) { return a.compare(b) > 0; }};
  static const NamedTest at_least = {1, [](V a, V b) { return a.compare(b) >= 0; }};
  static const std::map<std::string_view, NamedTest> table = {
      {"defined", {0, [](V a, V) { return !a.is_undefined(); }}},
      {"undefined", {0, [](V a, V) { return a.is_undefined(); }}},
      {"none", {0, [](V a, V) { return a.is_none(); }}},
      {"boolean", {0, [](V a, V) { return a.get<bool>() != nullptr; }}},
      {"true", {0, [](V a, V) { return a.get<bool>() != nullptr && a.truthy(); }}},
      {"false", {0, [](V a, V) { return a.get<bool>() != nullptr && !a.truthy(); }}},
      {"integer", {0, [](V a, V) { return a.get<int64_t>() != nullptr; }}},
      {"float", {0, [](V a, V) { return a.get<double>() != nullptr; }}},
      {"number", {0, [](V a, V) { return a.is_number(); }}},
      {"string", {0, [](V a, V) { return a.is_text(); }}},
      {"mapping", {0, [](V a, V) { return a.dict() != nullptr; }}},
      {"sequence", {0, [](V a, V) { return is_sequence(a); }}},
      {"iterable", {0, [](V a, V) { return is_iterable(a); }}},
      {"callable",
       {0,
        [](V a, V) {
          return a.is_undefined() || a.get<std::shared_ptr<const Callable>>() != nullptr;
        }}},
      {"escaped", {0, [](V, V) { return false; }}},
      {"lower", {0, [](V a, V) { return is_lower(a.str()); }}},
      {"upper", {0, [](V a, V) { return is_upper(a.str()); }}},
      {"odd", {0, [](V a, V) { return leaves(a, Value::integer(2), 1); }}},
      {"even", {0, [](V a, V) { return leaves(a, Value::integer(2), 0); }}},
      {"divisibleby", {1, [](V a, V b) { return leaves(a, b, 0); }}},
      {"sameas", {1, [](V a, V b) { return a.same_as(b); }}},
      {"in", {1, [](V a, V b) { return b.contains(a); }}},
      {"filter", {0, [](V a, V) { return a.is_text() && has_filter(a.as_text("filter")); }}},
      {"test", {0, [](V a, V) { return a.is_text() && has_test(a.as_text("test")); }}},
      {"eq", equal},
      {"equalto", equal},
      {"==", equal},
      {"ne", differs},
      {"!=", differs},
      {"lt", less},
      {"lessthan", less},
      {"<", less},
      {"le", at_most},
      {"<=", at_most},
      {"gt", greater},
      {"greaterthan", greater},
      {">", greater},
      {"ge", at_least},
      {">=", at_least}};
  return table;
}

}  // namespace

bool has_test(std::string_view name) {
  return tests().contains(name);
}

bool apply_test(const std::string& name, const Value& value, Arguments& arguments) {
  const auto at = tests().find(name);
  if (at == tests().end()) fail("the unknown test \"" + name.substr(0, 60) + "\"");
  const NamedTest& test = at->second;
  const size_t given = arguments.positional.size() + arguments.named.size();
  if (given != static_cast<size_t>(test.arguments) || !arguments.named.empty()) {
    fail("the test \"" + name + "\" with " + std::to_string(given) + " arguments");
  }
  return test.test(value, test.arguments == 1 ? arguments.positional[0] : Value());
}

}  // namespace polar::text::jinja
