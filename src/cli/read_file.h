#pragma once

#include <string>

#include "core/error.h"

namespace polar::cli {

/// A whole file as bytes. Errors: not there, not readable, a directory.
Result<std::string> read_file(const std::string& path);

}  // namespace polar::cli
