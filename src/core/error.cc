#include "core/error.h"

#include <fmt/format.h>

namespace polar {

Error bad_input(std::string_view where, std::string_view key, std::string_view found,
                std::string_view expected) {
  return Error{fmt::format("{}: {}: found {}, expected {}", where, key, found, expected)};
}

}  // namespace polar
