#pragma once

#include <memory>

#include "backend/device.h"
#include "cli/command.h"

namespace polar::cli {

/// The device that --device names; auto takes the GPU when there is one, and says on the standard
/// error why one that is there cannot be used.
Result<std::unique_ptr<backend::Device>> open_device(const ModelFlags& flags);

/// The KV type that --kv-dtype names, or the device's default.
DType kv_dtype(const ModelFlags& flags, const backend::Device& device);

}  // namespace polar::cli
