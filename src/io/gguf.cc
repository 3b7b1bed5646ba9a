// The getters of GgufFile; gguf_parser.cc reads the file.

#include "io/gguf.h"

#include <fmt/format.h>

#include <limits>

#include "io/gguf_types.h"
#include "io/in_quotes.h"

namespace polar::io {
namespace {

// An integer of any type, as its sign and magnitude allow.
struct Integer {
  bool negative;
  uint64_t bits;  // two's complement
};

std::optional<Integer> load_integer(GgufType type, const std::byte* data) {
  const auto from_signed = [](int64_t v) { return Integer{v < 0, static_cast<uint64_t>(v)}; };
  switch (type) {
    case GgufType::kU8:
      return Integer{false, load_unaligned<uint8_t>(data)};
    case GgufType::kU16:
      return Integer{false, load_unaligned<uint16_t>(data)};
    case GgufType::kU32:
      return Integer{false, load_unaligned<uint32_t>(data)};
    case GgufType::kU64:
      return Integer{false, load_unaligned<uint64_t>(data)};
    case GgufType::kI8:
      return from_signed(load_unaligned<int8_t>(data));
    case GgufType::kI16:
      return from_signed(load_unaligned<int16_t>(data));
    case GgufType::kI32:
      return from_signed(load_unaligned<int32_t>(data));
    case GgufType::kI64:
      return from_signed(load_unaligned<int64_t>(data));
    default:
      return std::nullopt;
  }
}

std::optional<int64_t> as_i64(const Integer& integer) {
  if (!integer.negative && integer.bits > INT64_MAX) return std::nullopt;
  return static_cast<int64_t>(integer.bits);
}

std::string_view load_string(const std::byte* data) {
  const auto length = load_unaligned<uint64_t>(data);
  return {reinterpret_cast<const char*>(data) + sizeof(uint64_t), length};
}

std::string describe(const GgufValue& value) {
  if (value.type == GgufType::kArray) {
    return fmt::format("an array of {} x {}", value.count, gguf_type_name(value.element));
  }
  if (value.type == GgufType::kString) return "the string " + in_quotes(load_string(value.data));
  if (const auto integer = load_integer(value.type, value.data)) {
    return integer->negative ? fmt::format("{}", static_cast<int64_t>(integer->bits))
                             : fmt::format("{}", integer->bits);
  }
  return fmt::format("a value of type {}", gguf_type_name(value.type));
}

}  // namespace

Result<const GgufValue*> GgufFile::value(std::string_view key, std::string_view expected) const {
  const auto at = values_.find(key);
  if (at == values_.end()) return bad_input(path_, key, "nothing", expected);
  return &at->second;
}

Error GgufFile::wrong_type(std::string_view key, const GgufValue& value,
                           std::string_view expected) const {
  return bad_input(path_, key, describe(value), expected);
}

Result<uint64_t> GgufFile::u64(std::string_view key) const {
  constexpr std::string_view kExpected = "a non-negative integer";
  POLAR_ASSIGN(const GgufValue* found, value(key, kExpected));
  const auto integer = load_integer(found->type, found->data);
  if (!integer || integer->negative) return wrong_type(key, *found, kExpected);
  return integer->bits;
}

Result<int64_t> GgufFile::i64(std::string_view key) const {
  constexpr std::string_view kExpected = "an integer of 64 bits";
  POLAR_ASSIGN(const GgufValue* found, value(key, kExpected));
  const auto integer = load_integer(found->type, found->data);
  const auto narrow = integer ? as_i64(*integer) : std::nullopt;
  if (!narrow) return wrong_type(key, *found, kExpected);
  return *narrow;
}

Result<double> GgufFile::f64(std::string_view key) const {
  constexpr std::string_view kExpected = "a floating-point number";
  POLAR_ASSIGN(const GgufValue* found, value(key, kExpected));
  if (found->type == GgufType::kF32) {
    return static_cast<double>(load_unaligned<float>(found->data));
  }
  if (found->type == GgufType::kF64) return load_unaligned<double>(found->data);
  return wrong_type(key, *found, kExpected);
}

Result<bool> GgufFile::boolean(std::string_view key) const {
  constexpr std::string_view kExpected = "a boolean";
  POLAR_ASSIGN(const GgufValue* found, value(key, kExpected));
  if (found->type != GgufType::kBool) return wrong_type(key, *found, kExpected);
  return load_unaligned<uint8_t>(found->data) != 0;
}

Result<std::string_view> GgufFile::string(std::string_view key) const {
  constexpr std::string_view kExpected = "a string";
  POLAR_ASSIGN(const GgufValue* found, value(key, kExpected));
  if (found->type != GgufType::kString) return wrong_type(key, *found, kExpected);
  return load_string(found->data);
}

Result<std::vector<std::string_view>> GgufFile::strings(std::string_view key) const {
  constexpr std::string_view kExpected = "an array of strings";
  POLAR_ASSIGN(const GgufValue* found, value(key, kExpected));
  if (found->type != GgufType::kArray || found->element != GgufType::kString) {
    return wrong_type(key, *found, kExpected);
  }
  std::vector<std::string_view> all;
  all.reserve(found->count);
  const std::byte* at = found->data;
  for (uint64_t i = 0; i < found->count; ++i) {
    all.push_back(load_string(at));
    at += sizeof(uint64_t) + all.back().size();
  }
  return all;
}

Result<std::vector<int64_t>> GgufFile::integers(std::string_view key) const {
  constexpr std::string_view kExpected = "an array of integers of 64 bits";
  POLAR_ASSIGN(const GgufValue* found, value(key, kExpected));
  if (found->type != GgufType::kArray) return wrong_type(key, *found, kExpected);
  const size_t bytes = gguf_type_bytes(found->element);
  std::vector<int64_t> all;
  if (bytes == 0) return wrong_type(key, *found, kExpected);
  all.reserve(found->count);
  for (uint64_t i = 0; i < found->count; ++i) {
    const auto integer = load_integer(found->element, found->data + i * bytes);
    const auto narrow = integer ? as_i64(*integer) : std::nullopt;
    if (!narrow) return wrong_type(key, *found, kExpected);
    all.push_back(*narrow);
  }
  return all;
}

Result<std::vector<float>> GgufFile::floats(std::string_view key) const {
  constexpr std::string_view kExpected = "an array of floating-point numbers";
  POLAR_ASSIGN(const GgufValue* found, value(key, kExpected));
  const bool is_f32 = found->element == GgufType::kF32;
  if (found->type != GgufType::kArray || (!is_f32 && found->element != GgufType::kF64)) {
    return wrong_type(key, *found, kExpected);
  }
  std::vector<float> all;
  all.reserve(found->count);
  for (uint64_t i = 0; i < found->count; ++i) {
    all.push_back(
        is_f32 ? load_unaligned<float>(found->data + i * sizeof(float))
               : static_cast<float>(load_unaligned<double>(found->data + i * sizeof(double))));
  }
  return all;
}

Result<uint64_t> GgufFile::u64_or(std::string_view key, uint64_t missing) const {
  return contains(key) ? u64(key) : missing;
}
Result<int64_t> GgufFile::i64_or(std::string_view key, int64_t missing) const {
  return contains(key) ? i64(key) : missing;
}
Result<double> GgufFile::f64_or(std::string_view key, double missing) const {
  return contains(key) ? f64(key) : missing;
}
Result<bool> GgufFile::boolean_or(std::string_view key, bool missing) const {
  return contains(key) ? boolean(key) : missing;
}
Result<std::string_view> GgufFile::string_or(std::string_view key, std::string_view missing) const {
  return contains(key) ? string(key) : missing;
}

const Tensor* GgufFile::find(std::string_view name) const {
  const auto at = tensor_index_.find(name);
  return at == tensor_index_.end() ? nullptr : &tensors_[at->second].view;
}

Result<Tensor> GgufFile::tensor(std::string_view name) const {
  if (const Tensor* view = find(name)) return *view;
  return bad_input(path_, "tensor " + in_quotes(name), "nothing", "a tensor of this name");
}

}  // namespace polar::io
