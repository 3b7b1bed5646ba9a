#include "serve/web.h"

#include <array>
#include <vector>

#include "serve/web_files.h"

namespace polar::serve {

namespace {

std::string_view media_type(std::string_view path) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kTypes = {
      {{".css", "text/css; charset=utf-8"},
       {".js", "text/javascript; charset=utf-8"},
       {".svg", "image/svg+xml"}}};
  for (const auto& [extension, type] : kTypes) {
    if (path.ends_with(extension)) return type;
  }
  return "text/html; charset=utf-8";
}

std::vector<WebFile> web_files() {
  std::vector<WebFile> files;
  for (unsigned i = 0; i < kEmbeddedFileCount; ++i) {
    const EmbeddedFile& file = kEmbeddedFiles[i];
    files.push_back(
        {file.path, media_type(file.path), {reinterpret_cast<const char*>(file.data), file.size}});
  }
  return files;
}

}  // namespace

const WebFile* find_web_file(std::string_view path) {
  static const std::vector<WebFile> files = web_files();
  for (const WebFile& file : files) {
    if (file.path == path) return &file;
  }
  return nullptr;
}

}  // namespace polar::serve
