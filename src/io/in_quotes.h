#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace polar::io {

/// A string from a file as an error sentence may show it: in quotes, on one line, printable ASCII
/// only (other bytes as \xNN) and at most `limit` bytes of it.
std::string in_quotes(std::string_view text, size_t limit = 80);

}  // namespace polar::io
