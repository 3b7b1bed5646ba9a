#pragma once
// What templates can use: filters, tests, methods and attributes of values (jinja2/filters.py,
// tests.py and sandbox.py; tojson as transformers defines it). Private to src/text.

#include <string>
#include <string_view>

#include "text/jinja_value.h"

namespace polar::text::jinja {

bool has_filter(std::string_view name);
bool has_test(std::string_view name);
Value apply_filter(const std::string& name, const Value& value, Arguments& arguments);
bool apply_test(const std::string& name, const Value& value, Arguments& arguments);

/// `object.name`: a method or attribute, then the item of that name.
Value get_attribute(const Value& object, const std::string& name);
/// `object[key]`: the item, then the method or attribute of that name.
Value get_item(const Value& object, const Value& key);
Value get_slice(const Value& object, const Value& begin, const Value& end, const Value& step);
/// A method or attribute of the type itself; undefined without a hint if there is none.
Value get_method(const Value& object, const std::string& name);

Value call(const Value& function, Arguments& arguments);
/// a + b, a - b, a * b, a / b, a // b, a % b, a ** b.
Value arithmetic(const std::string& op, const Value& left, const Value& right);
/// Python's "text" % values.
std::string percent_format(const std::string& format, const Value& values);
/// json.dumps(value, ensure_ascii=, indent=, separators=, sort_keys=).
std::string to_json(const Value& value, Arguments& arguments);

/// The argument at `index` or called `name`; null if it was not given. `take` checks, once all are
/// read, that nothing else was given.
class ArgumentReader {
 public:
  ArgumentReader(std::string_view function, Arguments& arguments)
      : function_(function), arguments_(arguments), used_(arguments.named.size(), false) {}

  const Value* find(size_t index, std::string_view name);
  const Value& need(size_t index, std::string_view name);
  bool boolean(size_t index, std::string_view name, bool fallback);
  int64_t integer(size_t index, std::string_view name, int64_t fallback);
  std::string text(size_t index, std::string_view name, std::string_view fallback);
  void finish() const;

 private:
  std::string function_;
  Arguments& arguments_;
  std::vector<bool> used_;
  size_t most_ = 0;
};

}  // namespace polar::text::jinja
