#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "core/error.h"

namespace polar::io {

/// Writes the parts one after the other as the file `path`, complete or not at all: into a
/// temporary file beside it, flushed to disk, then renamed over it. Errors name the path and the
/// system's reason; the temporary file is then gone.
Status write_file_atomically(const std::string& path,
                             std::span<const std::span<const std::byte>> parts);

}  // namespace polar::io
