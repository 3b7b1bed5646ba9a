// Any bytes: the reader either refuses them with one sentence or gives metadata and tensors that
// lie inside them.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "io/gguf.h"

using polar::io::GgufFile;
using polar::io::GgufTensor;

namespace {

struct Free {
  void operator()(std::byte* p) const { operator delete (p, std::align_val_t{64}); }
};

template <typename T>
void check_sentence(const polar::Result<T>& result) {
  if (result.ok()) return;
  const std::string& message = result.error().message;
  POLAR_CHECK(!message.empty() && message.size() < 2000);
}

void read_all(const GgufFile& file, size_t size) {
  for (const auto& [name, value] : file.values()) {
    check_sentence(file.u64(name));
    check_sentence(file.i64(name));
    check_sentence(file.f64(name));
    check_sentence(file.boolean(name));
    check_sentence(file.string(name));
    check_sentence(file.integers(name));
    check_sentence(file.floats(name));
    size_t bytes = 0;
    if (const auto strings = file.strings(name); strings.ok()) {
      for (const std::string_view text : *strings) bytes += text.size();
    }
    POLAR_CHECK(bytes <= size);
  }
  volatile std::byte touched{};
  size_t sum = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    const size_t bytes =
        polar::dtype_bytes(tensor.view.dtype, static_cast<size_t>(tensor.view.values()));
    const auto* first = tensor.view.as<std::byte>();
    touched = first[0] ^ first[bytes - 1];
    sum += bytes;
    POLAR_CHECK(file.find(tensor.name) == &tensor.view);
  }
  POLAR_CHECK(sum <= size);  // none overlap
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A copy aligned as a map would be; it ends where the input ends.
  const std::unique_ptr<std::byte, Free> copy(
      static_cast<std::byte*>(operator new (size, std::align_val_t{64})));
  if (size != 0) std::memcpy(copy.get(), data, size);
  const auto file = GgufFile::parse({copy.get(), size}, "fuzz");
  check_sentence(file);
  if (file.ok()) read_all(*file, size);
  return 0;
}
