#pragma once
// The JSON header of a safetensors file, as its parser hands it on.

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace polar::io {

struct HeaderTensor {
  std::string name;
  std::string dtype;            // as written: "F32", "BF16"
  std::vector<uint64_t> shape;  // at most kMaxRank extents
  uint64_t begin = 0, end = 0;  // bytes, relative to the end of the header
};

struct SafetensorsHeader {
  static constexpr size_t kMaxRank = 16;
  std::vector<HeaderTensor> tensors;  // in the order of the header, names unique
  std::map<std::string, std::string> metadata;
};

/// Parses the JSON text. `file` stands for the file in messages. Nothing but the header's own form
/// is checked here: sizes and offsets are the caller's.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view text, const std::string& file);

}  // namespace polar::io
