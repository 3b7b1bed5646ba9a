#include "cli/read_file.h"

#include <filesystem>
#include <fstream>
#include <sstream>

namespace polar::cli {

Result<std::string> read_file(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error))
    return bad_input(path, "file", "a folder", "a file");
  std::ifstream in(path, std::ios::binary);
  std::ostringstream bytes;
  if (!in || !(bytes << in.rdbuf()) || in.bad()) {
    // An empty file sets failbit on the inserting stream, and is fine.
    if (!in.is_open())
      return bad_input(path, "file", "nothing that can be read", "a readable file");
  }
  return std::move(bytes).str();
}

}  // namespace polar::cli
