#include "io/sharded_safetensors.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "io/test_files.h"
#include "io/weight_map.h"

namespace polar::io {
namespace {

TEST(ShardedSafetensorsTest, ReadsShardsThroughTheIndex) {
  auto opened = ShardedSafetensors::open(golden("sharded"));
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const ShardedSafetensors model = std::move(opened).value();
  EXPECT_EQ(model.files().size(), 2U);
  ASSERT_EQ(model.tensors().size(), 3U);
  EXPECT_EQ(model.tensors()[2].name, "c");
  EXPECT_EQ(model.find("a")->as<float>()[3], 0.0F);
  EXPECT_EQ(f16_to_f32(model.find("b")->as<uint16_t>()[1]), -1.0F);
  EXPECT_EQ(bf16_to_f32(model.find("c")->as<uint16_t>()[2]), -0.5F);
  auto unsupported = model.tensor("d");
  ASSERT_FALSE(unsupported.ok());
  expect_sentence(unsupported.error(), golden("sharded/model-00002-of-00002.safetensors"));
  auto missing = model.tensor("e");
  ASSERT_FALSE(missing.ok());
  expect_sentence(missing.error(), golden("sharded/model.safetensors.index.json"));
}

TEST(ShardedSafetensorsTest, ReadsASingleFile) {
  const TempFolder folder;
  folder.write("model.safetensors", read_file(golden("tiny.safetensors")));
  auto model = ShardedSafetensors::open(folder.path());
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_EQ(model->tensors().size(), 7U);
  auto unsupported = model->tensor("i64");
  ASSERT_FALSE(unsupported.ok());
  EXPECT_NE(unsupported.error().message.find("I64"), std::string::npos);
}

TEST(ShardedSafetensorsTest, FoldersThatLieAreSentences) {
  const TempFolder folder;
  auto nothing = ShardedSafetensors::open(folder.path());
  ASSERT_FALSE(nothing.ok());
  expect_sentence(nothing.error(), folder.path());

  folder.write("a.safetensors", read_file(golden("sharded/model-00001-of-00002.safetensors")));
  for (const auto& [map, expected] : {
           std::pair(R"({"a":"none.safetensors"})", "not in the folder"),
           {R"({"x":"a.safetensors"})", "no such tensor"},
           {R"({"a":"../a.safetensors"})", "beside the index"},
           {R"({"a":"/etc/passwd"})", "beside the index"},
           {R"({"a":".."})", "beside the index"},
           {R"({"a":""})", "beside the index"},
       }) {
    const std::string index =
        folder.write("model.safetensors.index.json", std::string(R"({"weight_map":)") + map + "}");
    auto model = ShardedSafetensors::open(folder.path());
    ASSERT_FALSE(model.ok()) << map;
    expect_sentence(model.error(), index);
    EXPECT_NE(model.error().message.find(expected), std::string::npos) << model.error().message;
  }
  folder.write("model.safetensors.index.json", R"({"weight_map":{"a":"a.safetensors"}})");
  EXPECT_TRUE(ShardedSafetensors::open(folder.path()).ok());
}

TEST(WeightMapTest, RefusesWhatIsNoMap) {
  for (const std::string text :
       {"", "[]", "1", "{", "{}", R"({"weight_map":{}})", R"({"weight_map":[]})",
        R"({"weight_map":"x"})", R"({"weight_map":null})", R"({"weight_map":{"a":1}})",
        R"({"weight_map":{"a":{}}})", R"({"weight_map":{"a":["x"]}})",
        R"({"weight_map":{"a":"x","a":"y"}})", R"({"weight_map":{"a":"x"},"weight_map":{"b":"y"}})",
        R"({"weight_map":{"a":"b\\c"}})", R"({"weight_map":{"a":"b\u0000"}})"}) {
    auto map = parse_weight_map(text, "index");
    ASSERT_FALSE(map.ok()) << text;
    expect_sentence(map.error(), "index");
  }
  auto deep = parse_weight_map("{\"x\":" + std::string(1 << 20, '['), "index");
  ASSERT_FALSE(deep.ok());
  expect_sentence(deep.error(), "index");
}

TEST(WeightMapTest, IgnoresOtherKeys) {
  auto map = parse_weight_map(
      R"({"x":{"weight_map":{"no":1}},"weight_map":{"a":"x.st","b":"y.st"},"y":[{"a":2}]})",
      "index");
  ASSERT_TRUE(map.ok()) << map.error().message;
  EXPECT_EQ(*map, (std::map<std::string, std::string>{{"a", "x.st"}, {"b", "y.st"}}));
}

}  // namespace
}  // namespace polar::io
