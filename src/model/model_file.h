#pragma once

#include <optional>

#include "io/gguf.h"
#include "io/sharded_safetensors.h"
#include "model/weights.h"

namespace polar::model {

/// What holds the mapped files: one of the two.
struct ModelFile::Storage {
  std::optional<io::GgufFile> gguf;
  std::optional<io::ShardedSafetensors> safetensors;
};

}  // namespace polar::model
