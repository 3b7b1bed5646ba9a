#pragma once
// Numbers of the GGUF format: metadata types, tensor types.

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "core/dtype.h"
#include "io/gguf.h"

namespace polar::io {

/// Bytes of one value of a fixed-size metadata type; 0 for strings and arrays.
size_t gguf_type_bytes(GgufType type);
/// "u32", "string", "array".
std::string_view gguf_type_name(GgufType type);

/// What a tensor type's number stands for: its name ("" when unknown) and Polar's type, if it can
/// hold it.
struct GgmlType {
  std::string_view name;
  std::optional<DType> dtype;
};
GgmlType ggml_type(uint32_t number);

/// An unaligned little-endian number.
template <typename T>
T load_unaligned(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

}  // namespace polar::io
