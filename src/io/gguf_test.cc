#include "io/gguf.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "io/test_files.h"

namespace polar::io {
namespace {

using namespace std::string_literals;

TEST(GgufTest, ReadsMetadataThatThePackageWrote) {
  auto opened = GgufFile::open(golden("tiny.gguf"));
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const GgufFile file = std::move(opened).value();
  EXPECT_EQ(file.version(), 3U);
  EXPECT_EQ(file.architecture(), "llama");
  EXPECT_EQ(*file.u64("t.u8"), 200U);
  EXPECT_EQ(*file.i64("t.i8"), -100);
  EXPECT_EQ(*file.u64("t.u16"), 60000U);
  EXPECT_EQ(*file.i64("t.i16"), -30000);
  EXPECT_EQ(*file.u64("t.u32"), 4000000000U);
  EXPECT_EQ(*file.i64("t.i32"), -2000000000);
  EXPECT_EQ(*file.u64("t.u64"), UINT64_MAX);
  EXPECT_EQ(*file.i64("t.i64"), INT64_MIN);
  EXPECT_EQ(*file.f64("t.f32"), 0.15625);
  EXPECT_EQ(*file.f64("t.f64"), 1e300);
  EXPECT_TRUE(*file.boolean("t.true"));
  EXPECT_FALSE(*file.boolean("t.false"));
  EXPECT_EQ(*file.string("t.string"), "h\u00e9llo\nworld");
  EXPECT_EQ(*file.string("t.empty"), "");
  EXPECT_EQ(*file.strings("t.strings"),
            (std::vector<std::string_view>{"a", "", "\u4e2d\u6587", std::string(300, 'd')}));
  EXPECT_EQ(*file.integers("t.integers"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(*file.floats("t.floats"), (std::vector<float>{0.5F, -1.25F}));
  EXPECT_EQ(*file.u64_or("none", 7), 7U);
  EXPECT_EQ(*file.u64_or("t.u8", 7), 200U);
  EXPECT_EQ(*file.string_or("none", "x"), "x");
}

TEST(GgufTest, WrongTypesAreSentences) {
  auto file = GgufFile::open(golden("tiny.gguf"));
  ASSERT_TRUE(file.ok());
  const std::vector<Error> errors = {
      file->u64("t.i8").error(),           file->i64("t.u64").error(),
      file->u64("none").error(),           file->u64("t.f32").error(),
      file->f64("t.u8").error(),           file->boolean("t.u8").error(),
      file->string("t.u8").error(),        file->strings("t.string").error(),
      file->strings("t.integers").error(), file->integers("t.strings").error(),
      file->integers("t.floats").error(),  file->floats("t.integers").error(),
      file->u64("t.strings").error(),      file->u64_or("t.string", 1).error(),
      file->integers("t.i8").error(),      file->tensor("none").error()};
  for (const Error& error : errors) expect_sentence(error, golden("tiny.gguf"));
  EXPECT_NE(errors[0].message.find("t.i8: found -100, expected a non-negative integer"),
            std::string::npos);
  EXPECT_NE(errors[12].message.find("found an array of 4 x string"), std::string::npos);
}

TEST(GgufTest, TensorsEqualWhatThePackageReads) {
  auto file = GgufFile::open(golden("tiny.gguf"));
  ASSERT_TRUE(file.ok());
  const std::string expected = read_file(golden("tiny_gguf.f32"));
  size_t at = 0;
  for (const GgufTensor& tensor : file->tensors()) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.view.data) % 32, 0U);
    std::vector<float> values(static_cast<size_t>(tensor.view.values()), 99.0F);
    dequantize_row(tensor.view.dtype, tensor.view.data, values.data(), values.size());
    const size_t bytes = values.size() * sizeof(float);
    ASSERT_LE(at + bytes, expected.size());
    EXPECT_EQ(std::memcmp(values.data(), expected.data() + at, bytes), 0) << tensor.name;
    at += bytes;
  }
  EXPECT_EQ(at, expected.size());
  ASSERT_NE(file->find("cube"), nullptr);
  EXPECT_EQ(file->find("cube")->shape, (std::array<int64_t, 4>{2, 3, 4, 1}));
  EXPECT_EQ(file->find("cube")->rank, 3);
  EXPECT_EQ(file->find("q4_1")->shape, (std::array<int64_t, 4>{3, 64, 1, 1}));
  EXPECT_EQ(file->find("q4_1")->dtype, DType::kQ4_1);
}

TEST(GgufTest, EveryTruncationIsASentence) {
  const std::string whole = read_file(golden("tiny.gguf"));
  size_t valid = 0;
  for (size_t size = 0; size < whole.size(); ++size) {
    const ExactCopy copy(std::string_view(whole).substr(0, size));
    auto file = GgufFile::parse(copy.bytes(), "cut");
    if (file.ok()) {
      ++valid;  // only the padding behind the last tensor may go
    } else {
      expect_sentence(file.error(), "cut");
    }
  }
  EXPECT_LT(valid, 32U);
}

TEST(GgufTest, ReadsVersion2) {
  std::string bytes = read_file(golden("tiny.gguf"));
  bytes[4] = 2;
  const ExactCopy copy(bytes);
  auto file = GgufFile::parse(copy.bytes(), "v2");
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->version(), 2U);
}

// A file with `entries` metadata entries beside the architecture and `tensors` tensors.
Bytes preamble(uint64_t tensors, uint64_t entries) {
  Bytes bytes;
  bytes.text = "GGUF";
  bytes.put<uint32_t>(3).put(tensors).put(entries + 1);
  return bytes.key("general.architecture", GgufType::kString).string("llama");
}

Bytes& tensor(Bytes& bytes, std::string_view name, const std::vector<uint64_t>& extents,
              uint32_t type, uint64_t offset) {
  bytes.string(name).put(static_cast<uint32_t>(extents.size()));
  for (const uint64_t extent : extents) bytes.put(extent);
  return bytes.put(type).put(offset);
}

std::string with_data(Bytes bytes, size_t size) {
  bytes.pad(32).text += std::string(size, '\0');
  return bytes.text;
}

struct Lie {
  const char* name;
  std::function<std::string()> make;
  const char* expected;
};

void expect_refused(const std::vector<Lie>& lies) {
  for (const Lie& lie : lies) {
    SCOPED_TRACE(lie.name);
    const ExactCopy copy(lie.make());
    auto file = GgufFile::parse(copy.bytes(), "lie");
    ASSERT_FALSE(file.ok());
    expect_sentence(file.error(), "lie");
    EXPECT_NE(file.error().message.find(lie.expected), std::string::npos) << file.error().message;
  }
}

// A file of one more metadata entry.
std::string entry(const std::function<void(Bytes&)>& write) {
  Bytes bytes = preamble(0, 1);
  write(bytes);
  return bytes.text + std::string(64, '\0');
}

TEST(GgufTest, LyingMetadataIsASentence) {
  using B = Bytes;
  expect_refused({
      {"version 1",
       [] {
         auto b = preamble(0, 0).text;
         b[4] = 1;
         return b;
       },
       "found 1"},
      {"version 4",
       [] {
         auto b = preamble(0, 0).text;
         b[4] = 4;
         return b;
       },
       "found 4"},
      {"big endian", [] { return "GGUF\0\0\0\3"s + std::string(16, '\0'); }, "big-endian"},
      {"no architecture", [] { return "GGUF\3\0\0\0"s + std::string(16, '\0'); },
       "general.architecture: found nothing"},
      {"metadata count",
       [] {
         auto b = preamble(0, 0).text;
         b[22] = 1;
         return b;
       },
       "metadata count"},
      {"tensor count", [] { return preamble(1ULL << 60, 0).text + "x"; }, "tensor count"},
      {"key length", [] { return entry([](B& b) { b.put(~0ULL); }); }, "metadata entry 1"},
      {"no key", [] { return entry([](B& b) { b.put<uint64_t>(0); }); }, "a key of 0 bytes"},
      {"long key", [] { return entry([](B& b) { b.string(std::string(65536, 'k')); }); },
       "65536 bytes"},
      {"key twice",
       [] {
         return entry([](B& b) { b.key("general.architecture", GgufType::kU8).put<uint8_t>(1); });
       },
       "twice"},
      {"value type", [] { return entry([](B& b) { b.key("k", GgufType{13}); }); }, "type 13"},
      {"element type",
       [] { return entry([](B& b) { b.key("k", GgufType::kArray).put<uint32_t>(99); }); },
       "array of type 99"},
      {"boolean", [] { return entry([](B& b) { b.key("k", GgufType::kBool).put<uint8_t>(2); }); },
       "the boolean 2"},
      {"string length",
       [] { return entry([](B& b) { b.key("k", GgufType::kString).put(~0ULL - 7); }); }, "\"k\""},
      {"array count",
       [] {
         return entry(
             [](B& b) { b.key("k", GgufType::kArray).put(GgufType::kU64).put(1ULL << 61); });
       },
       "elements"},
      {"string array count",
       [] {
         return entry(
             [](B& b) { b.key("k", GgufType::kArray).put(GgufType::kString).put(1ULL << 61); });
       },
       "elements"},
      {"nested arrays",
       [] {
         return entry([](B& b) {
           b.key("k", GgufType::kArray);
           for (int i = 0; i < 1000; ++i) b.put(GgufType::kArray).put<uint64_t>(1);
         });
       },
       "nested"},
      {"alignment",
       [] {
         return entry([](B& b) { b.key("general.alignment", GgufType::kU32).put<uint32_t>(12); });
       },
       "power of two"},
      {"alignment type",
       [] {
         return entry([](B& b) { b.key("general.alignment", GgufType::kString).string("x"); });
       },
       "general.alignment"},
      {"split",
       [] { return entry([](B& b) { b.key("split.count", GgufType::kU16).put<uint16_t>(3); }); },
       "one of 3 parts"},
  });
}

std::string one_tensor(const std::vector<uint64_t>& extents, uint32_t type, uint64_t offset,
                       size_t size) {
  Bytes bytes = preamble(1, 0);
  return with_data(tensor(bytes, "t", extents, type, offset), size);
}

std::string two_tensors(std::string_view second, uint64_t first_at, uint64_t second_at) {
  Bytes bytes = preamble(2, 0);
  tensor(bytes, "a", {16}, 0, first_at);
  return with_data(tensor(bytes, second, {16}, 0, second_at), 128);
}

TEST(GgufTest, LyingTensorsAreSentences) {
  expect_refused({
      {"name twice", [] { return two_tensors("a", 0, 64); }, "twice"},
      {"no name", [] { return two_tensors("", 0, 64); }, "a name of 0 bytes"},
      {"overlap", [] { return two_tensors("b", 0, 32); }, "at least 64"},
      {"same place", [] { return two_tensors("b", 0, 0); }, "at least 64"},
      {"overlap, later first", [] { return two_tensors("b", 32, 0); }, "at least 64"},
      {"misaligned", [] { return one_tensor({4}, 0, 8, 64); }, "alignment 32"},
      {"beyond", [] { return one_tensor({16}, 0, 96, 128); }, "64 bytes at offset 96"},
      {"far beyond", [] { return one_tensor({16}, 0, ~31ULL, 128); }, "within the 128 bytes"},
      {"no dimensions", [] { return one_tensor({}, 0, 0, 64); }, "0 dimensions"},
      {"five dimensions",
       [] {
         return one_tensor({1, 1, 1, 1, 1}, 0, 0, 64);
       },
       "5 dimensions"},
      {"zero",
       [] {
         return one_tensor({4, 0}, 0, 0, 64);
       },
       "[4, 0]"},
      {"overflow",
       [] {
         return one_tensor({1ULL << 32, 1ULL << 32}, 0, 0, 64);
       },
       "4294967296"},
      {"huge", [] { return one_tensor({1ULL << 62}, 0, 0, 64); }, "dimensions above 0"},
      {"negative", [] { return one_tensor({~0ULL}, 0, 0, 64); }, "dimensions above 0"},
      {"half a block", [] { return one_tensor({16}, 8, 0, 64); }, "multiple of 32 for q8_0"},
      {"iq2_xxs", [] { return one_tensor({256}, 16, 0, 512); }, "the type iq2_xxs (16)"},
      {"unknown type", [] { return one_tensor({256}, 1000, 0, 512); }, "the unknown type 1000"},
  });
  // And the honest ones next to them.
  for (const std::string& bytes : {two_tensors("b", 0, 64), two_tensors("b", 64, 0),
                                   one_tensor({32}, 8, 0, 34), one_tensor({4}, 0, 32, 48)}) {
    const ExactCopy copy(bytes);
    auto file = GgufFile::parse(copy.bytes(), "honest");
    EXPECT_TRUE(file.ok()) << file.error().message;
  }
}

TEST(GgufTest, ShallowNestedArraysAreSkipped) {
  Bytes bytes = preamble(0, 2);
  bytes.key("nested", GgufType::kArray).put(GgufType::kArray).put<uint64_t>(2);
  for (int i = 0; i < 2; ++i) bytes.put(GgufType::kU16).put<uint64_t>(1).put<uint16_t>(5);
  bytes.key("after", GgufType::kU8).put<uint8_t>(9);
  const ExactCopy copy(bytes.text);
  auto file = GgufFile::parse(copy.bytes(), "nested");
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(*file->u64("after"), 9U);
  EXPECT_FALSE(file->integers("nested").ok());
}

TEST(GgufTest, ReadsSmolLm2) {
  const char* path = std::getenv("POLAR_SMOLLM2");
  if (path == nullptr) GTEST_SKIP() << "POLAR_SMOLLM2 does not name the SmolLM2-135M GGUF file";
  auto file = GgufFile::open(path);
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->tensors().size(), 272U);
  EXPECT_EQ(file->strings("tokenizer.ggml.tokens")->size(), 49152U);
  auto down = file->tensor("blk.0.ffn_down.weight");
  ASSERT_TRUE(down.ok());
  EXPECT_EQ(down->shape, (std::array<int64_t, 4>{576, 1536, 1, 1}));
}

}  // namespace
}  // namespace polar::io
