#include "io/mmap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <utility>

namespace polar::io {
namespace {

// What the signal handler may read: plain memory and lock-free atomics only. A slot is in use while
// `begin` is not 0; `begin` is written last and cleared first.
struct MapSlot {
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  std::array<char, 512> path{};
};
std::array<MapSlot, 512> map_slots;
std::mutex map_slots_mutex;  // among writers

int register_map(const std::string& path, const std::byte* data, size_t size) {
  const std::lock_guard lock(map_slots_mutex);
  for (size_t i = 0; i < map_slots.size(); ++i) {
    MapSlot& slot = map_slots[i];
    if (slot.begin.load() != 0) continue;
    const size_t length = std::min(path.size(), slot.path.size() - 1);
    std::memcpy(slot.path.data(), path.data(), length);
    slot.path[length] = '\0';
    const auto begin = reinterpret_cast<uintptr_t>(data);
    slot.end.store(begin + size);
    slot.begin.store(begin);
    return static_cast<int>(i);
  }
  return -1;
}

void unregister_map(int slot) {
  if (slot >= 0) map_slots[static_cast<size_t>(slot)].begin.store(0);
}

void write_stderr(const char* text) {
  size_t left = std::strlen(text);
  while (left > 0) {
    const ssize_t written = ::write(STDERR_FILENO, text, left);
    if (written <= 0) return;
    text += written;
    left -= static_cast<size_t>(written);
  }
}

// Async-signal-safe: write, _exit and signal only.
void on_bus_error(int /*signal*/, siginfo_t* info, void* /*context*/) {
  // The faulting page, not the byte: the last page of a map reaches past the file's end.
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const MapSlot& slot : map_slots) {
    const uintptr_t begin = slot.begin.load();
    if (begin == 0 || address < begin || address >= slot.end.load()) continue;
    write_stderr("polar: error: ");
    write_stderr(slot.path.data());
    write_stderr(": the file was truncated or could not be read while it was in use\n");
    ::_exit(1);
  }
  std::signal(SIGBUS, SIG_DFL);  // not ours: the instruction runs again and meets the default
}

Error system_error(const std::string& path, int code, const char* action) {
  return Error{path + ": cannot " + action + ": " + std::strerror(code)};
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  // O_NONBLOCK: opening a named pipe must not wait for its other end.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return system_error(path, errno, "open");
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) {
    const int code = errno;
    ::close(descriptor);
    return system_error(path, code, "inspect");
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(descriptor);
    return bad_input(path, "type", S_ISDIR(info.st_mode) ? "a directory" : "a special file",
                     "a regular file");
  }
  if (info.st_size == 0) {
    ::close(descriptor);
    return bad_input(path, "size", "an empty file", "at least one byte");
  }
  const auto size = static_cast<size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
  const int code = errno;
  ::close(descriptor);
  if (data == MAP_FAILED) return system_error(path, code, "map");

  MappedFile file;
  file.path_ = path;
  file.data_ = static_cast<const std::byte*>(data);
  file.size_ = size;
  file.slot_ = register_map(path, file.data_, size);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      slot_(std::exchange(other.slot_, -1)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    reset();
    path_ = std::move(other.path_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    slot_ = std::exchange(other.slot_, -1);
  }
  return *this;
}

MappedFile::~MappedFile() {
  reset();
}

void MappedFile::reset() noexcept {
  unregister_map(std::exchange(slot_, -1));
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  data_ = nullptr;
  size_ = 0;
}

void explain_bus_errors() {
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace polar::io
