#include "io/weight_map.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "io/in_quotes.h"

namespace polar::io {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 64;

bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.size() <= 255 &&
         name.find('/') == std::string_view::npos && name.find('\\') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

// Keeps the strings of the top object's weight_map and skips the rest.
class IndexHandler : public json::json_sax_t {
 public:
  explicit IndexHandler(std::string file) : file_(std::move(file)) {}

  const Error& error() const { return error_; }
  bool has_map() const { return has_map_; }
  std::map<std::string, std::string> take() { return std::move(map_); }

  bool key(string_t& name) override {
    if (depth_ == 1) {
      in_map_ = name == "weight_map";
      if (in_map_ && std::exchange(has_map_, true)) {
        return fail("weight_map", "the key twice", "one weight_map");
      }
    } else if (depth_ == 2 && in_map_) {
      tensor_ = name;
      if (map_.contains(name)) {
        return fail("weight_map", "the tensor " + in_quotes(name) + " twice", "unique names");
      }
    }
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ == 1 && in_map_) return not_an_object();
    if (depth_ == 2 && in_map_) {
      if (!is_plain_file_name(value)) {
        return fail("weight_map",
                    fmt::format("the shard {} of {}", in_quotes(value), in_quotes(tensor_)),
                    "the name of a file beside the index");
      }
      map_[tensor_] = std::move(value);
    }
    return true;
  }

  bool start_object(std::size_t /*elements*/) override {
    if (depth_ == 2 && in_map_) return not_a_string();
    return enter();
  }
  bool end_object() override { return leave(); }
  bool start_array(std::size_t /*elements*/) override {
    if (depth_ == 0) return fail("content", "an array", "a JSON object");
    if (depth_ == 1 && in_map_) return not_an_object();
    return other() && enter();
  }
  bool end_array() override { return leave(); }

  bool null() override { return other(); }
  bool boolean(bool /*value*/) override { return other(); }
  bool number_integer(number_integer_t /*value*/) override { return other(); }
  bool number_unsigned(number_unsigned_t /*value*/) override { return other(); }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override { return other(); }
  bool binary(binary_t& /*value*/) override { return other(); }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const json::exception& /*exception*/) override {
    return fail("content", fmt::format("broken JSON at byte {}", position), "a JSON object");
  }

 private:
  bool enter() {
    if (depth_ == kMaxDepth) {
      return fail("content", fmt::format("more than {} levels", kMaxDepth), "fewer levels");
    }
    ++depth_;
    return true;
  }
  bool leave() {
    --depth_;
    return true;
  }
  bool other() {
    if (depth_ == 1 && in_map_) return not_an_object();
    if (depth_ == 2 && in_map_) return not_a_string();
    return true;
  }
  bool not_an_object() { return fail("weight_map", "no object", "an object of file names"); }
  bool not_a_string() {
    return fail("weight_map", "no string for " + in_quotes(tensor_), "the name of a shard");
  }
  bool fail(const std::string& key, const std::string& found, const std::string& expected) {
    error_ = bad_input(file_, key, found, expected);
    return false;
  }

  std::string file_;
  Error error_;
  int depth_ = 0;
  bool in_map_ = false;  // the current key of the top object is weight_map
  bool has_map_ = false;
  std::string tensor_;
  std::map<std::string, std::string> map_;
};

}  // namespace

Result<std::map<std::string, std::string>> parse_weight_map(std::string_view text,
                                                            const std::string& file) {
  IndexHandler handler(file);
  if (!json::sax_parse(text.begin(), text.end(), &handler)) return handler.error();
  auto map = handler.take();
  if (map.empty()) {
    return bad_input(file, "weight_map", handler.has_map() ? "no tensor" : "nothing",
                     "an object of tensor names and file names");
  }
  return map;
}

}  // namespace polar::io
