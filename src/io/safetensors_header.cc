#include "io/safetensors_header.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <unordered_set>
#include <utility>

#include "io/in_quotes.h"

namespace polar::io {
namespace {

using nlohmann::json;

// Takes the header event by event, so that neither a deep nor a wide one costs more memory than its
// tensors, and duplicate keys are seen. Returning false ends the parse.
class HeaderHandler : public json::json_sax_t {
 public:
  HeaderHandler(std::string file, SafetensorsHeader& header)
      : file_(std::move(file)), header_(header) {}

  const Error& error() const { return error_; }

  bool key(string_t& name) override {
    if (place_ == Place::kTop) return top_key(name);
    if (place_ == Place::kMetadata) {
      if (!header_.metadata.try_emplace(name).second) {
        return fail("__metadata__", "the key " + in_quotes(name) + " twice", "unique keys");
      }
      key_ = name;
      return true;
    }
    if (name == "dtype" || name == "shape" || name == "data_offsets") {
      if (!fields_.insert(name).second) {
        return fail(tensor_key(), name + " twice", "unique keys");
      }
      key_ = name;
      return true;
    }
    return fail(tensor_key(), "the key " + in_quotes(name), "dtype, shape and data_offsets");
  }

  bool start_object(std::size_t /*elements*/) override {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kTop;
        return true;
      case Place::kTop:
        place_ = in_metadata_ ? Place::kMetadata : Place::kTensor;
        return true;
      default:
        return unexpected("an object");
    }
  }

  bool end_object() override {
    if (place_ == Place::kTop) {
      place_ = Place::kEnd;
      return true;
    }
    const bool was_tensor = place_ == Place::kTensor;
    place_ = Place::kTop;
    if (was_tensor && fields_.size() != 3) {
      return fail(tensor_key(), fmt::format("{} of its keys", fields_.size()),
                  "dtype, shape and data_offsets");
    }
    return true;
  }

  bool start_array(std::size_t /*elements*/) override {
    if (place_ != Place::kTensor || key_ == "dtype") return unexpected("an array");
    place_ = Place::kArray;
    offsets_ = 0;
    return true;
  }

  bool end_array() override {
    place_ = Place::kTensor;
    if (key_ == "data_offsets" && offsets_ != 2) {
      return fail(tensor_key(), fmt::format("{} data_offsets", offsets_), "a begin and an end");
    }
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::kArray) return unexpected("a number");
    HeaderTensor& tensor = header_.tensors.back();
    if (key_ == "shape") {
      if (tensor.shape.size() == SafetensorsHeader::kMaxRank) {
        return fail(tensor_key(), fmt::format("more than {} dimensions", tensor.shape.size()),
                    fmt::format("at most {}", tensor.shape.size()));
      }
      tensor.shape.push_back(value);
    } else if (offsets_ >= 2) {
      return fail(tensor_key(), "more than 2 data_offsets", "a begin and an end");
    } else {
      (offsets_++ == 0 ? tensor.begin : tensor.end) = value;
    }
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) {
      header_.metadata[key_] = std::move(value);
      return true;
    }
    if (place_ != Place::kTensor || key_ != "dtype") return unexpected("a string");
    header_.tensors.back().dtype = std::move(value);
    return true;
  }

  bool null() override { return unexpected("null"); }
  bool boolean(bool /*value*/) override { return unexpected("a boolean"); }
  bool number_integer(number_integer_t /*value*/) override {
    return unexpected("a negative number");
  }
  bool number_float(number_float_t /*value*/, const string_t& text) override {
    return unexpected(in_quotes(text));
  }
  bool binary(binary_t& /*value*/) override { return unexpected("binary data"); }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const json::exception& /*exception*/) override {
    return fail("header", fmt::format("broken JSON at its byte {}", position), "a JSON object");
  }

 private:
  enum class Place { kStart, kTop, kMetadata, kTensor, kArray, kEnd };

  bool top_key(const std::string& name) {
    in_metadata_ = name == "__metadata__";
    if (in_metadata_) {
      if (std::exchange(seen_metadata_, true)) {
        return fail("header", "__metadata__ twice", "unique keys");
      }
      return true;
    }
    if (!names_.insert(name).second) {
      return fail("header", "the tensor " + in_quotes(name) + " twice", "unique names");
    }
    header_.tensors.emplace_back().name = name;
    fields_.clear();
    return true;
  }

  std::string tensor_key() const { return "tensor " + in_quotes(header_.tensors.back().name); }

  bool unexpected(const std::string& found) {
    switch (place_) {
      case Place::kStart:
      case Place::kEnd:
        return fail("header", found, "a JSON object");
      case Place::kTop:
        return fail(in_metadata_ ? "__metadata__" : tensor_key(), found, "an object");
      case Place::kMetadata:
        return fail("__metadata__", found, "strings only");
      case Place::kTensor:
      case Place::kArray:
        break;
    }
    return fail(tensor_key(), fmt::format("{} in {}", found, key_),
                key_ == "dtype" ? "a string" : "an array of non-negative integers");
  }

  bool fail(const std::string& key, const std::string& found, const std::string& expected) {
    error_ = bad_input(file_, key, found, expected);
    return false;
  }

  std::string file_;
  SafetensorsHeader& header_;
  Error error_;
  Place place_ = Place::kStart;
  std::string key_;  // the current key inside a tensor or the metadata
  bool in_metadata_ = false, seen_metadata_ = false;
  int offsets_ = 0;
  std::set<std::string, std::less<>> fields_;  // seen of the current tensor
  std::unordered_set<std::string> names_;
};

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::string_view text, const std::string& file) {
  SafetensorsHeader header;
  HeaderHandler handler(file, header);
  if (!json::sax_parse(text.begin(), text.end(), &handler)) return handler.error();
  return header;
}

}  // namespace polar::io
