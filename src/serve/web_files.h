#pragma once
// What web/embed.cmake writes; web.h is what to use.

#include <cstddef>

namespace polar::serve {

struct EmbeddedFile {
  const char* path;
  const unsigned char* data;
  size_t size;
};
extern const EmbeddedFile* const kEmbeddedFiles;
extern const unsigned kEmbeddedFileCount;

}  // namespace polar::serve
