#include "io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace polar::io {
namespace {

bool write_all(int descriptor, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return true;
}

}  // namespace

Status write_file_atomically(const std::string& path,
                             std::span<const std::span<const std::byte>> parts) {
  std::string temporary = path + ".XXXXXX";
  const int descriptor = ::mkostemp(temporary.data(), O_CLOEXEC);
  if (descriptor < 0) return Error{path + ": cannot create: " + std::strerror(errno)};
  bool good = true;
  for (const std::span<const std::byte> part : parts) good = good && write_all(descriptor, part);
  // mkostemp makes files private; give this one what any new file would get.
  const mode_t mask = ::umask(0);
  ::umask(mask);
  good = good && ::fchmod(descriptor, 0666 & ~mask) == 0 && ::fsync(descriptor) == 0;
  int code = errno;
  if (::close(descriptor) != 0 && good) {
    code = errno;
    good = false;
  }
  if (good && ::rename(temporary.c_str(), path.c_str()) != 0) {
    code = errno;
    good = false;
  }
  if (!good) {
    ::unlink(temporary.c_str());
    return Error{path + ": cannot write: " + std::strerror(code)};
  }
  return {};
}

}  // namespace polar::io
