#pragma once
// Read-only memory maps of model files, and what happens when such a file shrinks under the
// process.

#include <cstddef>
#include <span>
#include <string>

#include "core/error.h"

namespace polar::io {

/// A regular file mapped read only. Move-only; the map keeps its address when moved, so views into
/// it stay valid as long as some MappedFile owns it.
class MappedFile {
 public:
  /// Maps a file. Missing, unreadable or empty files, and directories, are errors.
  static Result<MappedFile> open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }  // bytes, at least 1
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  MappedFile() = default;
  void reset() noexcept;

  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  int slot_ = -1;  // in the table that the bus-error handler reads
};

/// Installs a SIGBUS handler for the life of the process. Reading a mapped page that the file no
/// longer has (it was truncated, or its disk failed) raises SIGBUS; the handler then writes one
/// sentence that names the file to stderr and ends the process with exit code 1. A SIGBUS
/// elsewhere keeps its default action. Programs call this once at start; the library never does by
/// itself. The first 512 maps alive at a time are known by name.
void explain_bus_errors();

}  // namespace polar::io
