#pragma once
// The files of the page (src/serve/web), embedded in the binary.

#include <string_view>

namespace polar::serve {

struct WebFile {
  std::string_view path;  // as it is asked for: "/", "/app.js"
  std::string_view type;  // media type
  std::string_view body;
};

/// Null if the page has no such file.
const WebFile* find_web_file(std::string_view path);

}  // namespace polar::serve
