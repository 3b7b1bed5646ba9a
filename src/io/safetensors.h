#pragma once
// The safetensors format (https://github.com/huggingface/safetensors#format): 8 bytes header size N
// (little endian), N bytes of JSON, tensor data. Read in place from a map, written atomically.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/tensor.h"
#include "io/mmap.h"

namespace polar::io {

/// A tensor by name; its data points into a mapped file. A scalar has rank 0 and one value.
struct FileTensor {
  std::string name;
  Tensor view;
};

/// One file, its header fully validated: sizes and offsets without holes or overlaps, known types,
/// no duplicate names, at most 100 MB of header. Views live as long as this object (also after it
/// is moved).
class SafetensorsFile {
 public:
  /// Maps and validates. Errors name the file, the tensor, what was found and what was expected.
  static Result<SafetensorsFile> open(const std::string& path);
  /// The same for a file in memory, which must outlive the result. `name` stands for the file in
  /// messages.
  static Result<SafetensorsFile> parse(std::span<const std::byte> file, const std::string& name);

  /// Tensors that Polar can hold (f32, f16, bf16, i32; up to 4 dimensions), sorted by name.
  const std::vector<FileTensor>& tensors() const { return tensors_; }
  /// The tensor of that name, or null: for tensors that a model may or may not have.
  const Tensor* find(std::string_view name) const;
  /// Whether the file has a tensor of that name, also one that Polar cannot hold.
  bool holds(std::string_view name) const {
    return find(name) != nullptr || unsupported_.contains(name);
  }
  /// The tensor of that name. Missing ones, and those of a type or rank that the format allows and
  /// Polar cannot hold, are errors that say so.
  Result<Tensor> tensor(std::string_view name) const;
  /// The header's "__metadata__".
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }

 private:
  friend struct SafetensorsBuilder;
  SafetensorsFile() = default;

  std::string path_;
  std::optional<MappedFile> map_;
  std::vector<FileTensor> tensors_;
  std::map<std::string, std::string, std::less<>> unsupported_;  // name -> what was found
  std::map<std::string, std::string> metadata_;
  // Copies of tensors whose data is not aligned to their type (old writers do not pad the header).
  std::vector<std::unique_ptr<std::byte[]>> aligned_copies_;
};

/// Writes a file whose tensors are aligned to their types, complete or not at all (a temporary file
/// beside it is renamed). Types: f32, f16, bf16, i32. Duplicate names are an error.
Status write_safetensors(const std::string& path, std::span<const FileTensor> tensors,
                         const std::map<std::string, std::string>& metadata);

}  // namespace polar::io
