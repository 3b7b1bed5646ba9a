#pragma once
// What the tests of this folder share: files in memory and on disk, made byte by byte.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "io/gguf.h"

namespace polar::io {

inline std::string golden(const std::string& name) {
  return std::string(POLAR_GOLDEN_DIR) + "/io/" + name;
}

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// A copy that ends where its heap block ends, so that AddressSanitizer sees reads behind it.
/// Aligned to 64 bytes, as maps are.
class ExactCopy {
 public:
  explicit ExactCopy(std::string_view bytes)
      : size_(bytes.size()),
        data_(static_cast<std::byte*>(operator new (bytes.size(), std::align_val_t{64}))) {
    if (!bytes.empty()) std::memcpy(data_.get(), bytes.data(), bytes.size());
  }
  std::span<const std::byte> bytes() const { return {data_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* p) const { operator delete (p, std::align_val_t{64}); }
  };
  size_t size_;
  std::unique_ptr<std::byte, Free> data_;
};

/// A folder that is gone with the test.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = testing::TempDir() + "polar_io_XXXXXX";
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string write(const std::string& name, std::string_view bytes) const {
    std::string file = path_ + "/" + name;
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }

 private:
  std::string path_;
};

/// One line, and the form of every complaint.
inline void expect_sentence(const Error& error, const std::string& file) {
  EXPECT_EQ(error.message.rfind(file + ": ", 0), 0U) << error.message;
  EXPECT_NE(error.message.find("found "), std::string::npos) << error.message;
  EXPECT_NE(error.message.find(", expected "), std::string::npos) << error.message;
  for (const char c : error.message) ASSERT_GE(static_cast<unsigned char>(c), 0x20);
  EXPECT_LT(error.message.size(), 600U);
}

/// Bytes written one field after the other, as GGUF lays them out.
struct Bytes {
  std::string text;

  template <typename T>
  Bytes& put(T value) {
    text.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  Bytes& string(std::string_view value) {
    put<uint64_t>(value.size());
    text += value;
    return *this;
  }
  Bytes& key(std::string_view name, GgufType type) {
    string(name);
    return put(static_cast<uint32_t>(type));
  }
  Bytes& pad(size_t alignment) {
    while (text.size() % alignment != 0) text += '\0';
    return *this;
  }
};

/// A safetensors file of that header and data.
inline std::string safetensors_bytes(std::string_view header, std::string_view data) {
  Bytes bytes;
  bytes.put<uint64_t>(header.size());
  bytes.text += header;
  bytes.text += data;
  return bytes.text;
}

}  // namespace polar::io
