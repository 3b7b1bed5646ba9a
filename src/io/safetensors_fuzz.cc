// Any bytes: the header reader either refuses them with one sentence or gives tensors that lie
// inside them. The index of a sharded model goes through the same bytes.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "io/safetensors.h"
#include "io/weight_map.h"

using polar::io::FileTensor;
using polar::io::SafetensorsFile;

namespace {

void check_sentence(const std::string& message) {
  for (const char c : message) POLAR_CHECK(static_cast<unsigned char>(c) >= 0x20);
  POLAR_CHECK(!message.empty() && message.size() < 2000);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // An aligned copy, as a map would be; it ends where the input ends.
  const auto copy = std::make_unique<std::byte[]>(size);
  if (size != 0) std::memcpy(copy.get(), data, size);
  auto file = SafetensorsFile::parse({copy.get(), size}, "fuzz");
  if (file.ok()) {
    volatile std::byte touched{};
    for (const FileTensor& tensor : file->tensors()) {
      const size_t bytes =
          polar::dtype_bytes(tensor.view.dtype, static_cast<size_t>(tensor.view.values()));
      POLAR_CHECK(bytes <= size);
      const auto* first = tensor.view.as<std::byte>();
      if (bytes != 0) touched = first[0] ^ first[bytes - 1];
      POLAR_CHECK(file->tensor(tensor.name).ok());
    }
  } else {
    check_sentence(file.error().message);
  }
  const auto map = polar::io::parse_weight_map({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!map.ok()) check_sentence(map.error().message);
  return 0;
}
