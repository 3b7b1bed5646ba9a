#pragma once
// GGUF files, versions 2 and 3, little endian (https://github.com/ggml-org/ggml/blob/master/docs/
// gguf.md): typed metadata and tensors, read in place from a map.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/tensor.h"
#include "io/mmap.h"

namespace polar::io {

/// A tensor by name; its data points into the mapped file. The shape is outermost first, that is,
/// the file's dimensions reversed: [rows, columns], rows contiguous.
struct GgufTensor {
  std::string_view name;
  Tensor view;
};

/// The types of metadata values, numbered as in the file.
enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

/// A metadata value where it lies in the file; the file has been checked to hold it whole.
struct GgufValue {
  GgufType type = GgufType::kU8;
  GgufType element = GgufType::kU8;  // of arrays; elsewhere equal to type
  uint64_t count = 1;                // elements of arrays; elsewhere 1
  const std::byte* data = nullptr;   // unaligned; strings begin with their u64 length
};

/// One file, fully validated: metadata, tensor names, shapes, types, offsets. Views (names,
/// strings, tensors) live as long as this object (also after it is moved). All errors are one
/// sentence,
/// "<file>: <key>: found ..., expected ...".
class GgufFile {
 public:
  /// Maps and validates. `general.architecture` must be there; big-endian files, version 1, parts
  /// of split models and unknown tensor types are refused by name.
  static Result<GgufFile> open(const std::string& path);
  /// The same for a file in memory, aligned to 64 bytes, which must outlive the result. `name`
  /// stands for the file in messages.
  static Result<GgufFile> parse(std::span<const std::byte> file, const std::string& name);

  uint32_t version() const { return version_; }
  std::string_view architecture() const { return architecture_; }
  const std::string& path() const { return path_; }

  /// Metadata. Getters fail when the key is missing or holds another type; u64 and i64 take any
  /// integer type whose value fits, f64 takes f32 and f64.
  bool contains(std::string_view key) const { return values_.contains(key); }
  Result<uint64_t> u64(std::string_view key) const;
  Result<int64_t> i64(std::string_view key) const;
  Result<double> f64(std::string_view key) const;
  Result<bool> boolean(std::string_view key) const;
  Result<std::string_view> string(std::string_view key) const;
  /// Arrays: the elements in order. Strings point into the file.
  Result<std::vector<std::string_view>> strings(std::string_view key) const;
  Result<std::vector<int64_t>> integers(std::string_view key) const;
  Result<std::vector<float>> floats(std::string_view key) const;

  /// The same with a value for a missing key; another type is still an error.
  Result<uint64_t> u64_or(std::string_view key, uint64_t missing) const;
  Result<int64_t> i64_or(std::string_view key, int64_t missing) const;
  Result<double> f64_or(std::string_view key, double missing) const;
  Result<bool> boolean_or(std::string_view key, bool missing) const;
  Result<std::string_view> string_or(std::string_view key, std::string_view missing) const;

  /// All metadata, sorted by key.
  const std::map<std::string_view, GgufValue>& values() const { return values_; }

  /// Tensors in the order of the file.
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  /// The tensor of that name, or null.
  const Tensor* find(std::string_view name) const;
  Result<Tensor> tensor(std::string_view name) const;

 private:
  friend class GgufParser;
  GgufFile() = default;
  Result<const GgufValue*> value(std::string_view key, std::string_view expected) const;
  Error wrong_type(std::string_view key, const GgufValue& value, std::string_view expected) const;

  std::string path_;
  std::optional<MappedFile> map_;
  uint32_t version_ = 0;
  std::string_view architecture_;
  std::map<std::string_view, GgufValue> values_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string_view, size_t> tensor_index_;
};

}  // namespace polar::io
