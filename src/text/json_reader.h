#pragma once
// Reading JSON from outside with complaints that name file and key. Private to src/text.

#include <nlohmann/json.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/error.h"

namespace polar::text {

/// A value and the way to it, e.g. "pre_tokenizer.pretokenizers[0]".
class JsonView {
 public:
  JsonView(const nlohmann::json* value, std::string where, std::string key)
      : value_(value), where_(std::move(where)), key_(std::move(key)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& where() const { return where_; }
  const std::string& key() const { return key_; }
  bool is_null() const { return value_->is_null(); }

  /// The member `name`; a missing one reads as null.
  JsonView at(std::string_view name) const {
    static const nlohmann::json null;
    const auto key = key_.empty() ? std::string(name) : key_ + "." + std::string(name);
    if (!value_->is_object()) return {&null, where_, key};
    const auto found = value_->find(name);
    return {found == value_->end() ? &null : &*found, where_, key};
  }
  JsonView at(size_t index) const {
    return {&(*value_)[index], where_, key_ + "[" + std::to_string(index) + "]"};
  }

  Error error(std::string_view expected) const {
    return bad_input(where_, key_, shown(), expected);
  }
  Error error(std::string_view found, std::string_view expected) const {
    return bad_input(where_, key_, found, expected);
  }

  Result<std::string> string() const {
    if (!value_->is_string()) return error("a string");
    return value_->get_ref<const std::string&>();
  }
  /// null and missing give `fallback`.
  Result<bool> boolean(bool fallback) const {
    if (is_null()) return fallback;
    if (!value_->is_boolean()) return error("true or false");
    return value_->get<bool>();
  }
  Result<int64_t> integer(int64_t low, int64_t high) const {
    const bool fits = value_->is_number_integer() &&
                      !(value_->is_number_unsigned() &&
                        value_->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
    const int64_t number = fits ? value_->get<int64_t>() : 0;
    if (!fits || number < low || number > high) {
      return error("an integer from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return number;
  }
  Status require_object() const {
    return value_->is_object() ? Status() : Status(error("an object"));
  }
  Status require_array() const { return value_->is_array() ? Status() : Status(error("a list")); }

  /// The value as the complaint shows it: short, on one line.
  std::string shown() const {
    if (is_null()) return "nothing";
    if (value_->is_object()) return "an object";
    if (value_->is_array()) return "a list of " + std::to_string(value_->size());
    std::string text = value_->dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    if (text.size() > 80) text = text.substr(0, 80) + "...";
    return text;
  }

 private:
  const nlohmann::json* value_;
  std::string where_;
  std::string key_;
};

}  // namespace polar::text
