// Properties over random files: what is written is read back, and no mutation of a valid file does
// more than end in a sentence.

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "io/safetensors.h"
#include "io/test_files.h"

namespace polar::io {
namespace {

struct Owned {
  Tensor view;
  std::vector<std::byte> data;
};

std::map<std::string, Owned> random_tensors() {
  std::map<std::string, Owned> all;
  const auto names = *rc::gen::container<std::vector<std::string>>(
      rc::gen::nonEmpty(rc::gen::string<std::string>()));
  for (const std::string& raw : names) {
    std::string name;  // JSON text is UTF-8: keep ASCII, control characters included
    for (const char c : raw) name += static_cast<char>(c & 0x7F);
    Owned owned;
    owned.view.dtype = *rc::gen::element(DType::kF32, DType::kF16, DType::kBF16, DType::kI32);
    owned.view.rank = *rc::gen::inRange(0, 5);
    for (int i = 0; i < owned.view.rank; ++i) {
      owned.view.shape[static_cast<size_t>(i)] = *rc::gen::inRange<int64_t>(0, 4);
    }
    owned.data.resize(dtype_bytes(owned.view.dtype, static_cast<size_t>(owned.view.values())));
    for (std::byte& byte : owned.data) byte = std::byte{*rc::gen::arbitrary<uint8_t>()};
    all[name] = std::move(owned);
  }
  return all;
}

RC_GTEST_PROP(SafetensorsProperty, WhatIsWrittenIsReadBack, ()) {
  std::map<std::string, Owned> expected = random_tensors();
  std::vector<FileTensor> tensors;
  for (auto& [name, owned] : expected) {
    owned.view.data = owned.data.data();
    tensors.push_back({name, owned.view});
  }
  const std::map<std::string, std::string> metadata = {{"a\n\"b", "\x01 c"}, {"", "\u00e9"}};
  const TempFolder folder;
  const std::string path = folder.path() + "/w.safetensors";
  RC_ASSERT(write_safetensors(path, tensors, metadata).ok());
  const auto file = SafetensorsFile::open(path);
  RC_ASSERT(file.ok());
  RC_ASSERT(file->metadata() == metadata);
  RC_ASSERT(file->tensors().size() == expected.size());
  for (const auto& [name, owned] : expected) {
    const Tensor* found = file->find(name);
    RC_ASSERT(found != nullptr);
    RC_ASSERT(found->dtype == owned.view.dtype);
    RC_ASSERT(found->rank == owned.view.rank);
    RC_ASSERT(found->shape == owned.view.shape);
    // A plain bool: RC_ASSERT does not short-circuit.
    const bool equal =
        owned.data.empty() || std::memcmp(found->data, owned.data.data(), owned.data.size()) == 0;
    RC_ASSERT(equal);
  }
}

// A few bytes overwritten, some of them with extreme numbers, and perhaps a cut.
std::string mutated(std::string bytes) {
  const int edits = *rc::gen::inRange(1, 5);
  for (int i = 0; i < edits; ++i) {
    const auto at = *rc::gen::inRange<size_t>(0, bytes.size());
    if (*rc::gen::arbitrary<bool>()) {
      bytes[at] = static_cast<char>(*rc::gen::arbitrary<uint8_t>());
    } else {
      const auto number = *rc::gen::element<uint64_t>(0, 1, 0xFFFFFFFF, ~0ULL, 1ULL << 63, 0x7FFF,
                                                      ~0ULL >> 1, 1ULL << 61);
      std::memcpy(bytes.data() + at, &number, std::min<size_t>(8, bytes.size() - at));
    }
  }
  if (*rc::gen::inRange(0, 4) == 0) bytes.resize(*rc::gen::inRange<size_t>(0, bytes.size()));
  return bytes;
}

RC_GTEST_PROP(SafetensorsProperty, MutationsAreReadOrRefused, ()) {
  static const std::string whole = read_file(golden("tiny.safetensors"));
  const ExactCopy copy(mutated(whole));
  const auto file = SafetensorsFile::parse(copy.bytes(), "mutated");
  if (file.ok()) {
    for (const FileTensor& tensor : file->tensors()) {
      std::vector<float> values(static_cast<size_t>(tensor.view.values()));
      dequantize_row(tensor.view.dtype, tensor.view.data, values.data(), values.size());
    }
  } else {
    expect_sentence(file.error(), "mutated");
  }
}

RC_GTEST_PROP(GgufProperty, MutationsAreReadOrRefused, ()) {
  static const std::string whole = read_file(golden("tiny.gguf"));
  const ExactCopy copy(mutated(whole));
  const auto file = GgufFile::parse(copy.bytes(), "mutated");
  if (file.ok()) {
    for (const GgufTensor& tensor : file->tensors()) {
      std::vector<float> values(static_cast<size_t>(tensor.view.values()));
      dequantize_row(tensor.view.dtype, tensor.view.data, values.data(), values.size());
    }
  } else {
    expect_sentence(file.error(), "mutated");
  }
}

}  // namespace
}  // namespace polar::io
