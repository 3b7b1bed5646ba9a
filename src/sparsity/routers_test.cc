#include "sparsity/routers.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <random>
#include <set>

#include "io/safetensors.h"

namespace polar::sparsity {
namespace {

using testing::HasSubstr;

class RoutersFile : public testing::Test {
 protected:
  RoutersFile()
      : folder_(std::filesystem::temp_directory_path() /
                ("polar_routers_" + std::to_string(getpid()))) {}
  ~RoutersFile() override { std::filesystem::remove_all(folder_); }

  std::string folder() const { return folder_.string(); }
  std::string path() const { return (folder_ / "routers.safetensors").string(); }
  std::string complaint(int hidden = 32, int kv_heads = 2, int ffn = 6) const {
    const auto read = read_routers(folder(), 3, hidden, kv_heads, ffn);
    EXPECT_FALSE(read.ok());
    std::string message = read.ok() ? "" : read.error().message;
    EXPECT_THAT(message, HasSubstr("routers.safetensors: "));
    EXPECT_EQ(message.find('\n'), std::string::npos);
    return message;
  }

  static Routers sample() {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    const auto values = [&](int count) {
      std::vector<float> out(count);
      for (float& value : out) value = normal(random);
      return out;
    };
    Routers routers;
    routers.hidden = 32;
    routers.kv_heads = 2;
    routers.ffn = 6;
    routers.recalls = {0.95, 0.99};
    routers.batches = {1, 4};
    routers.heads = {{}, {values(64), values(2)}, {}};
    routers.mlps.resize(3);
    routers.mlps[0].rank = 3;
    routers.mlps[0].a = values(96);
    routers.mlps[0].b = values(18);
    routers.mlps[0].bias = values(6);
    routers.mlps[0].neurons = {2, 5, 3, 6};
    routers.mlps[2].unit = 0.25f;
    routers.mlps[2].neurons = {1, 4, 2, 6};
    return routers;
  }

 private:
  std::filesystem::path folder_;
};

TEST_F(RoutersFile, RoundTrips) {
  const Routers written = sample();
  ASSERT_TRUE(write_routers(folder(), written).ok());
  const auto read = read_routers(folder(), 3, 32, 2, 6);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->batches, written.batches);
  ASSERT_EQ(read->recalls.size(), 2u);
  EXPECT_FLOAT_EQ(read->recalls[0], 0.95);
  EXPECT_FLOAT_EQ(read->recalls[1], 0.99);
  EXPECT_TRUE(read->heads[0].weight.empty());
  EXPECT_EQ(read->heads[1].weight, written.heads[1].weight);
  EXPECT_EQ(read->heads[1].bias, written.heads[1].bias);
  EXPECT_EQ(read->mlps[0].rank, 3);
  EXPECT_EQ(read->mlps[0].a, written.mlps[0].a);
  EXPECT_EQ(read->mlps[0].b, written.mlps[0].b);
  EXPECT_EQ(read->mlps[0].bias, written.mlps[0].bias);
  EXPECT_EQ(read->mlps[0].neurons, written.mlps[0].neurons);
  EXPECT_FALSE(read->mlps[1].routes());
  EXPECT_EQ(read->mlps[2].rank, 0);
  EXPECT_EQ(read->mlps[2].unit, 0.25f);
  EXPECT_EQ(read->mlps[2].neurons, written.mlps[2].neurons);
}

TEST_F(RoutersFile, SaysWhatIsWrong) {
  EXPECT_THAT(complaint(), HasSubstr("routers.safetensors"));  // not there
  ASSERT_TRUE(write_routers(folder(), sample()).ok());
  EXPECT_THAT(complaint(33), HasSubstr("[3, 32], expected f32, f16 or bf16 [3, 33]"));
  EXPECT_THAT(complaint(32, 3), HasSubstr("layers.1.head_router.weight"));
  EXPECT_THAT(complaint(32, 2, 7), HasSubstr("mlp_router.b"));
  Routers broken = sample();
  broken.heads[1].weight[3] = std::numeric_limits<float>::quiet_NaN();
  ASSERT_TRUE(write_routers(folder(), broken).ok());
  EXPECT_THAT(complaint(), HasSubstr("nan, expected finite values"));
  broken = sample();
  broken.mlps[0].neurons[1] = 7;
  ASSERT_TRUE(write_routers(folder(), broken).ok());
  EXPECT_THAT(complaint(), HasSubstr("7, expected 1 to 6"));
  broken = sample();
  broken.mlps[2].unit = std::numeric_limits<float>::infinity();
  ASSERT_TRUE(write_routers(folder(), broken).ok());
  EXPECT_THAT(complaint(), HasSubstr("layers.2.mlp_router.unit: found inf, expected finite"));
  broken = sample();
  broken.batches = {4, 1};
  ASSERT_TRUE(write_routers(folder(), broken).ok());
  EXPECT_THAT(complaint(), HasSubstr("ascending"));
  broken = sample();
  broken.recalls = {0.99, 0.95};
  ASSERT_TRUE(write_routers(folder(), broken).ok());
  EXPECT_THAT(complaint(), HasSubstr("mlp_router.recall: found 0.95"));
  broken = sample();
  broken.recalls = {0.99, 1.01};
  ASSERT_TRUE(write_routers(folder(), broken).ok());
  EXPECT_THAT(complaint(), HasSubstr("found 1.01"));
}

/// Files of one recall hold a plain list of numbers.
TEST_F(RoutersFile, OneRecallNeedsNoTable) {
  const int32_t batches[] = {1, 8}, neurons[] = {3, 5};
  const float recall = 0.98f, unit = 0.5f;
  const auto list = [](const void* data, DType type, int64_t count) {
    return Tensor{const_cast<void*>(data), type, {count, 1, 1, 1}, 1};
  };
  std::filesystem::create_directories(folder());
  const std::vector<io::FileTensor> tensors = {
      {"mlp_router.batches", list(batches, DType::kI32, 2)},
      {"mlp_router.recall", list(&recall, DType::kF32, 1)},
      {"layers.0.mlp_router.unit", list(&unit, DType::kF32, 1)},
      {"layers.0.mlp_router.neurons", list(neurons, DType::kI32, 2)}};
  ASSERT_TRUE(io::write_safetensors(path(), tensors, {}).ok());
  const auto read = read_routers(folder(), 3, 32, 2, 6);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(neurons_for(*read, 0, 8, 0.98), 5);
  EXPECT_EQ(neurons_for(*read, 0, 8, 0.99), 6);  // more than was measured: all
}

TEST_F(RoutersFile, EveryCutIsRefused) {
  ASSERT_TRUE(write_routers(folder(), sample()).ok());
  for (auto size = std::filesystem::file_size(path()); size > 0;) {
    size = size > 61 ? size - 61 : 0;
    std::filesystem::resize_file(path(), size);
    complaint();
  }
}

TEST(NeuronsFor, InterpolatesBetweenMeasuredBatches) {
  Routers routers;
  routers.ffn = 1000;
  routers.batches = {1, 4, 16};
  routers.recalls = {0.99};
  routers.mlps.resize(1);
  routers.mlps[0].neurons = {100, 200, 400};
  EXPECT_EQ(neurons_for(routers, 0, 1, 0.99), 100);
  EXPECT_EQ(neurons_for(routers, 0, 2, 0.99), 150);
  EXPECT_EQ(neurons_for(routers, 0, 8, 0.99), 300);
  EXPECT_EQ(neurons_for(routers, 0, 16, 0.99), 400);
  EXPECT_EQ(neurons_for(routers, 0, 17, 0.99), 1000);
}

TEST(NeuronsFor, InterpolatesBetweenMeasuredRecalls) {
  Routers routers;
  routers.ffn = 1000;
  routers.batches = {1, 4};
  routers.recalls = {0.9, 0.99, 1.0};
  routers.mlps.resize(1);
  routers.mlps[0].neurons = {100, 200, 300, 600, 900, 950};
  EXPECT_EQ(neurons_for(routers, 0, 1, 0.5), 100);
  EXPECT_EQ(neurons_for(routers, 0, 1, 0.9), 100);
  // 0.0316 is missed: half way between a tenth and a hundredth.
  EXPECT_EQ(neurons_for(routers, 0, 1, 1 - std::sqrt(1e-3)), 200);
  EXPECT_EQ(neurons_for(routers, 0, 2, 1 - std::sqrt(1e-3)), 300);
  EXPECT_EQ(neurons_for(routers, 0, 4, 0.99), 600);
  EXPECT_EQ(neurons_for(routers, 0, 4, static_cast<float>(0.99)), 600);
  EXPECT_EQ(neurons_for(routers, 0, 1, 0.995), 900);
  EXPECT_EQ(neurons_for(routers, 0, 1, 1.0), 900);
  routers.recalls = {0.9, 0.95, 0.99};
  EXPECT_EQ(neurons_for(routers, 0, 1, 1.0), 1000);
}

}  // namespace
}  // namespace polar::sparsity
