#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "io/test_files.h"

namespace polar::io {
namespace {

// The values of ramp() in tests/golden/io/make.py: -1.5, -1, -0.5, ...
void expect_ramp(const Tensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.values()), 99.0F);
  dequantize_row(tensor.dtype, tensor.data, values.data(), values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(values[i], (static_cast<float>(i) - 3.0F) / 2.0F);
  }
}

void expect_tensor(const SafetensorsFile& file, const std::string& name, DType dtype, int rank,
                   std::array<int64_t, 4> shape) {
  auto tensor = file.tensor(name);
  ASSERT_TRUE(tensor.ok()) << tensor.error().message;
  EXPECT_EQ(tensor->dtype, dtype) << name;
  EXPECT_EQ(tensor->rank, rank) << name;
  EXPECT_EQ(tensor->shape, shape) << name;
}

TEST(SafetensorsTest, ReadsWhatThePackageWrote) {
  auto opened = SafetensorsFile::open(golden("tiny.safetensors"));
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const SafetensorsFile file = std::move(opened).value();
  EXPECT_EQ(file.tensors().size(), 7U);
  expect_tensor(file, "scalar", DType::kF32, 0, {1, 1, 1, 1});
  expect_tensor(file, "f32", DType::kF32, 2, {2, 3, 1, 1});
  expect_tensor(file, "f16", DType::kF16, 3, {3, 1, 2, 1});
  expect_tensor(file, "bf16", DType::kBF16, 1, {5, 1, 1, 1});
  expect_tensor(file, "empty", DType::kF32, 2, {0, 4, 1, 1});
  expect_tensor(file, "i32", DType::kI32, 2, {2, 2, 1, 1});
  for (const char* name : {"scalar", "f32", "f16", "bf16", "name with \"quotes\" and \u00e9"}) {
    ASSERT_NE(file.find(name), nullptr) << name;
    expect_ramp(*file.find(name));
  }
  const auto* integers = file.find("i32")->as<int32_t>();
  EXPECT_EQ(integers[2], INT32_MAX);
  EXPECT_EQ(integers[3], INT32_MIN);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.metadata().at("note"), "line\nbreak");
}

TEST(SafetensorsTest, TensorsItCannotHoldAreErrorsOnlyWhenAskedFor) {
  auto file = SafetensorsFile::open(golden("tiny.safetensors"));
  ASSERT_TRUE(file.ok());
  for (const auto& [name, found] : {std::pair("i64", "found dtype I64"),
                                    {"bool", "found dtype BOOL"},
                                    {"five", "found 5 dimensions"},
                                    {"none\n", "tensor \"none\\x0a\": found nothing"}}) {
    EXPECT_EQ(file->find(name), nullptr);
    auto tensor = file->tensor(name);
    ASSERT_FALSE(tensor.ok());
    expect_sentence(tensor.error(), golden("tiny.safetensors"));
    EXPECT_NE(tensor.error().message.find(found), std::string::npos) << tensor.error().message;
  }
  EXPECT_TRUE(file->holds("i64"));
  EXPECT_FALSE(file->holds("none"));
}

TEST(SafetensorsTest, EveryTruncationIsASentence) {
  const std::string whole = read_file(golden("tiny.safetensors"));
  for (size_t size = 0; size < whole.size(); ++size) {
    const ExactCopy copy(std::string_view(whole).substr(0, size));
    auto file = SafetensorsFile::parse(copy.bytes(), "cut");
    ASSERT_FALSE(file.ok()) << size;
    expect_sentence(file.error(), "cut");
  }
  const ExactCopy copy(whole);
  EXPECT_TRUE(SafetensorsFile::parse(copy.bytes(), "whole").ok());
}

TEST(SafetensorsTest, MisalignedTensorsAreCopiedIntoPlace) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  for (size_t spaces = 0; spaces < 8; ++spaces) {
    const std::string bytes =
        safetensors_bytes(header + std::string(spaces, ' '), std::string_view("\0\0\xC0\x3F", 4));
    const ExactCopy copy(bytes);
    auto file = SafetensorsFile::parse(copy.bytes(), "f");
    ASSERT_TRUE(file.ok()) << file.error().message;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file->find("a")->data) % 4, 0U);
    EXPECT_EQ(*file->find("a")->as<float>(), 1.5F);
  }
}

struct Lie {
  const char* name;
  std::string header;
  size_t data_bytes;
  const char* expected;  // part of the message
};

std::string entry(const std::string& name, const std::string& type, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + type + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

TEST(SafetensorsTest, LyingHeadersAreSentences) {
  const std::string a = entry("a", "F32", "[2]", "[0,8]");
  const std::vector<Lie> lies = {
      {"not an object", "[1]", 0, "header"},
      {"empty", "", 0, "header"},
      {"leading space", " {}", 0, "header"},
      {"broken", "{" + a, 8, "broken JSON"},
      {"trailing", "{" + a + "}x", 8, "broken JSON"},
      {"invalid UTF-8", "{\"\xFF\":1}", 0, "broken JSON"},
      {"twice", "{" + a + "," + a + "}", 8, "twice"},
      {"key twice", R"({"a":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4,
       "dtype twice"},
      {"metadata twice", R"({"__metadata__":{},"__metadata__":{}})", 0, "twice"},
      {"metadata key twice", R"({"__metadata__":{"a":"","a":""}})", 0, "twice"},
      {"metadata number", R"({"__metadata__":{"a":1}})", 0, "strings only"},
      {"metadata string", R"({"__metadata__":"x"})", 0, "an object"},
      {"unknown key", R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}})", 4, "\"x\""},
      {"missing key", R"({"a":{"dtype":"F32","shape":[]}})", 0, "2 of its keys"},
      {"three offsets", "{" + entry("a", "F32", "[2]", "[0,8,9]") + "}", 8, "data_offsets"},
      {"one offset", "{" + entry("a", "F32", "[2]", "[0]") + "}", 8, "1 data_offsets"},
      {"unknown type", "{" + entry("a", "Q4", "[2]", "[0,8]") + "}", 8, "\"Q4\""},
      {"negative", "{" + entry("a", "F32", "[-2]", "[0,8]") + "}", 8, "negative"},
      {"float", "{" + entry("a", "F32", "[2.0]", "[0,8]") + "}", 8, "\"2.0\""},
      {"huge number", "{" + entry("a", "F32", "[99999999999999999999]", "[0,8]") + "}", 8, "a"},
      {"overflow", "{" + entry("a", "F32", "[4294967296,4294967296]", "[0,0]") + "}", 0, "2^63"},
      {"zero times huge", "{" + entry("a", "F32", "[0,9223372036854775807,9]", "[0,0]") + "}", 0,
       "2^63"},
      {"many dimensions",
       "{" + entry("a", "F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]") + "}", 4,
       "dimensions"},
      {"wrong size", "{" + entry("a", "F32", "[3]", "[0,8]") + "}", 8, "12 bytes for F32 [3]"},
      {"descending", "{" + entry("a", "F32", "[2]", "[8,0]") + "}", 8, "ascending"},
      {"beyond", "{" + entry("a", "F32", "[2]", "[0,8]") + "}", 7, "ascending"},
      {"far beyond",
       "{" + entry("a", "F32", "[2]", "[18446744073709551608,18446744073709551615]") + "}", 8,
       "ascending"},
      {"hole", "{" + a + "," + entry("b", "F32", "[1]", "[12,16]") + "}", 16, "without a hole"},
      {"hole in front", "{" + entry("b", "F32", "[1]", "[4,8]") + "}", 8, "without a hole"},
      {"overlap", "{" + a + "," + entry("b", "F32", "[1]", "[4,8]") + "}", 8, "without overlap"},
      {"trailing data", "{" + a + "}", 9, "the 8 bytes"},
      {"half a byte", "{" + entry("a", "F4", "[3]", "[0,1]") + "}", 1, "whole bytes"},
      {"nested shape", "{" + entry("a", "F32", "[[2]]", "[0,8]") + "}", 8, "an array"},
      {"deep", "{\"a\":" + std::string(1 << 20, '['), 0, "an array"},
      {"deep objects",
       [] {
         std::string text = "{";
         for (int i = 0; i < 100000; ++i) text += "\"a\":{";
         return text;
       }(),
       0, "a"},
      {"null", "{\"a\":null}", 0, "null"},
      {"boolean", "{\"a\":true}", 0, "a boolean"},
  };
  for (const Lie& lie : lies) {
    SCOPED_TRACE(lie.name);
    const ExactCopy copy(safetensors_bytes(lie.header, std::string(lie.data_bytes, '\0')));
    auto file = SafetensorsFile::parse(copy.bytes(), "lie");
    ASSERT_FALSE(file.ok());
    expect_sentence(file.error(), "lie");
    EXPECT_NE(file.error().message.find(lie.expected), std::string::npos) << file.error().message;
  }
}

TEST(SafetensorsTest, HeaderSizesBeyondTheFileOrTheLimitAreSentences) {
  for (const uint64_t size : {uint64_t{3}, uint64_t{100'000'001}, ~uint64_t{0}, ~uint64_t{7}}) {
    Bytes bytes;
    bytes.put(size).text += "{}";
    const ExactCopy copy(bytes.text);
    auto file = SafetensorsFile::parse(copy.bytes(), "lie");
    ASSERT_FALSE(file.ok()) << size;
    expect_sentence(file.error(), "lie");
    EXPECT_NE(file.error().message.find("header size"), std::string::npos);
  }
}

TEST(SafetensorsTest, WriterRefusesWhatTheFormatCannotHold) {
  const TempFolder folder;
  const std::string path = folder.path() + "/w.safetensors";
  std::vector<float> values(32, 1.0F);
  Tensor tensor{values.data(), DType::kF32, {2, 1, 1, 1}, 1};
  Tensor blocks{values.data(), DType::kQ8_0, {32, 1, 1, 1}, 1};
  EXPECT_FALSE(write_safetensors(path, std::vector<FileTensor>{{"q", blocks}}, {}).ok());
  EXPECT_FALSE(write_safetensors(path, std::vector<FileTensor>{{"a", tensor}, {"a", tensor}}, {}));
  EXPECT_FALSE(write_safetensors(folder.path() + "/none/w", std::vector<FileTensor>{}, {}).ok());
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  ASSERT_TRUE(write_safetensors(path, std::vector<FileTensor>{}, {}).ok());
  EXPECT_TRUE(SafetensorsFile::open(path).ok());
}

}  // namespace
}  // namespace polar::io
