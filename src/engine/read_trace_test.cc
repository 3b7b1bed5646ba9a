// What a traced request says its units read, against the profile's rules done by hand.

#include <gtest/gtest.h>

#include <thread>

#include "backend/ranges.h"
#include "engine/engine.h"
#include "model/small_config.h"

namespace polar::engine {
namespace {

using backend::kPageTokens;
using backend::ReadKind;

sparsity::Profile mixed_profile() {
  sparsity::Profile profile = sparsity::window_profile(3, 2, 1, 2, {});
  auto& budgets = profile.points[1].budgets;
  budgets[0].kind = ReadKind::kFull;
  budgets[2].kind = ReadKind::kNone;
  budgets[3].kind = ReadKind::kPages;
  budgets[3].pages_per_mille = 500;
  return profile;
}

class ReadTraceTest : public ::testing::TestWithParam<EngineOptions::Pipeline> {
 protected:
  void SetUp() override {
    auto device = backend::make_cpu_device({1});
    ASSERT_TRUE(device.ok());
    device_ = std::move(device).value();
    auto weights = model::dummy_weights(*device_, config_, DType::kF32, 7);
    ASSERT_TRUE(weights.ok());
    weights_ = std::make_unique<model::Weights>(std::move(weights).value());
    EngineOptions options;
    options.kv_dtype = DType::kF32;
    options.max_batch = 4;
    options.max_length = 256;
    options.pipeline = GetParam();
    auto engine = Engine::create(*device_, *weights_, &profile_, options);
    ASSERT_TRUE(engine.ok()) << engine.error().message;
    engine_ = std::move(engine).value();
  }

  std::shared_ptr<Generation> submit(int point, bool trace, int first_token) {
    GenerationRequest request;
    for (int i = 0; i < kPrompt; ++i) request.prompt.push_back((first_token + 5 * i) % 211);
    request.max_tokens = kOutput;
    request.ignore_eos = true;
    request.point = point;
    request.trace = trace;
    auto generation = engine_->submit(request);
    EXPECT_TRUE(generation.ok());
    return std::move(generation).value();
  }

  static constexpr int kPrompt = 150, kOutput = 40;
  const model::ModelConfig config_ = model::small_config({0, 0, 32});
  const sparsity::Profile profile_ = mixed_profile();
  std::unique_ptr<backend::Device> device_;
  std::unique_ptr<model::Weights> weights_;
  std::unique_ptr<Engine> engine_;
};

struct Sum {
  ReadTrace read;
  Usage usage;
};
Sum sum_of(Generation& generation) {
  Sum sum;
  while (auto event = generation.next()) {
    sum.read.add(event->read);
    sum.usage = event->usage;
  }
  return sum;
}

TEST_P(ReadTraceTest, SaysWhatEveryUnitRead) {
  // Traced sparse, traced dense and untraced requests in one batch.
  const auto sparse = submit(1, true, 1), dense = submit(0, true, 2), other = submit(1, false, 3);
  const Sum sums[] = {sum_of(*dense), sum_of(*sparse)};
  EXPECT_TRUE(sum_of(*other).read.pages.empty());

  std::vector<int64_t> expected_dense(3), expected_sparse(6);
  for (int position = kPrompt; position < kPrompt + kOutput - 1; ++position) {
    const int pages = position / kPageTokens + 1;
    const int slid = pages - std::max(0, position - 31) / kPageTokens;
    expected_dense[0] += pages;
    expected_dense[1] += pages;
    expected_dense[2] += slid;
    expected_sparse[0] += pages;
    expected_sparse[1] += 1 + 2 + 1;  // sink, recent, the page being filled
    expected_sparse[3] += (pages + 1) / 2;
    for (const int unit : {4, 5}) expected_sparse[unit] += std::min(slid, 3);
  }
  for (const Sum& sum : sums) {
    EXPECT_EQ(sum.read.rows, kOutput - 1);
    EXPECT_EQ(sum.read.dense, expected_dense);
  }
  EXPECT_EQ(sums[0].read.pages,
            (std::vector<int64_t>{expected_dense[0], expected_dense[0], expected_dense[1],
                                  expected_dense[1], expected_dense[2], expected_dense[2]}));
  EXPECT_EQ(sums[1].read.pages, expected_sparse);
}

TEST_P(ReadTraceTest, TakesTogetherWhatNobodyFetched) {
  const auto generation = submit(1, true, 1);
  while (engine_->stats().finished == 0) std::this_thread::yield();
  const auto event = generation->next();
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->read.rows, kOutput - 1);
  EXPECT_EQ(event->tokens.size(), size_t{kOutput});
}

INSTANTIATE_TEST_SUITE_P(Pipeline, ReadTraceTest,
                         ::testing::Values(EngineOptions::Pipeline::kOff,
                                           EngineOptions::Pipeline::kOn));

}  // namespace
}  // namespace polar::engine
