#include "study/evaluate.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "engine/load_tokenizer.h"
#include "study/candidates.h"
#include "study/policy.h"

namespace polar::study {
namespace {

using testing::ElementsAre;

TEST(Documents, AreCutAtLinesThatHoldOnlyTheSeparator) {
  EXPECT_THAT(split_documents("one\n\x1e\ntwo\nlines\n\x1e\n"), ElementsAre("one", "two\nlines"));
  EXPECT_THAT(split_documents("\x1e\none"), ElementsAre("one"));
  EXPECT_THAT(split_documents("a\x1e\nb \x1e c"), ElementsAre("a\x1e\nb \x1e c"));
  EXPECT_THAT(split_documents(""), ElementsAre());
}

TEST(Windows, AreCutFromAllDocumentsInARow) {
  const auto encode = [](const std::string& text) {
    std::vector<int32_t> tokens = {2};
    for (const char c : text) tokens.push_back(c);
    return tokens;
  };
  const auto windows = make_windows("t", {"abc", "defg"}, encode, 4, 0);
  ASSERT_TRUE(windows.ok());
  EXPECT_EQ(windows->count, 2);
  EXPECT_THAT(std::vector<int32_t>(windows->at(1).begin(), windows->at(1).end()),
              ElementsAre(2, 'd', 'e', 'f'));
  EXPECT_FALSE(make_windows("t", {"ab"}, encode, 4, 0).ok());
}

TEST(RankUnits, AUnitThatOnlyRetrievalNeedsIsNotLost) {
  EXPECT_THAT(rank_units({0.1, 0.4, 0.2, 0.0}, {0.0, 0.1, 0.2, 0.9}), ElementsAre(1, 3, 2, 0));
}

/// The trained model that only some machines have; see .ci/run.
class TrainedModel : public testing::Test {
 protected:
  void SetUp() override {
    const char* shared = std::getenv("POLAR_SHARED");
    if (shared == nullptr)
      GTEST_SKIP() << "POLAR_SHARED is unset: the trained model and its texts are not here";
    shared_ = shared;
    auto file = model::ModelFile::open(shared_ + "/models/opt-42m-docs");
    ASSERT_TRUE(file.ok()) << file.error().message;
    file_ = std::make_unique<model::ModelFile>(std::move(file).value());
    auto device = backend::make_cpu_device({});
    ASSERT_TRUE(device.ok());
    device_ = std::move(device).value();
    auto weights = model::load_weights(*device_, *file_);
    ASSERT_TRUE(weights.ok());
    weights_ = std::make_unique<model::Weights>(std::move(weights).value());
  }

  Windows windows(int count) {
    std::ifstream in(shared_ + "/text/validation.txt", std::ios::binary);
    std::ostringstream bytes;
    bytes << in.rdbuf();
    auto tokenizer = engine::load_tokenizer(*file_);
    EXPECT_TRUE(tokenizer.ok());
    auto cut = make_windows(
        "validation.txt", split_documents(bytes.str()),
        [&](const std::string& text) { return tokenizer->encode(text, true); }, 1024, count);
    EXPECT_TRUE(cut.ok());
    return std::move(cut).value();
  }

  Evaluation run(const Windows& windows, const Policy& policy, int prompt = 0, double known = 0,
                 int batch = 1) {
    auto planner = make_planner(policy, *device_, *file_);
    EXPECT_TRUE(planner.ok());
    auto neurons = make_neurons(policy, *device_, file_->config());
    EXPECT_TRUE(neurons.ok());
    (*planner)->set_neurons(std::move(neurons).value());
    EvaluateOptions options;
    options.batch = batch;
    options.prompt = prompt;
    options.known_dense_perplexity = known;
    auto result = evaluate(*device_, *weights_, windows, planner->get(), options);
    EXPECT_TRUE(result.ok());
    return std::move(result).value();
  }

  /// Sanitizers make steps thirty times as long: fewer tokens then, and their numbers are not those
  /// of many.
  const bool few_ = std::getenv("POLAR_SANITIZED") != nullptr;
  std::string shared_;
  std::unique_ptr<model::ModelFile> file_;
  std::unique_ptr<backend::Device> device_;
  std::unique_ptr<model::Weights> weights_;
};

/// Reference values: slow f32 PyTorch code over the same windows.
TEST_F(TrainedModel, PerplexityDenseAndByThePapersOracleEqualTheReference) {
  if (few_) GTEST_SKIP() << "64 windows take too long with sanitizers";
  Policy paper;
  paper.kind = PolicyKind::kOracle;
  paper.rank_by = RankBy::kNorm;
  paper.fallback = Fallback::kNone;
  paper.dense_layers = {0};
  paper.density = 7.0 / 8;
  const Evaluation result = run(windows(64), paper);
  EXPECT_NEAR(result.dense_perplexity, 5.387, 0.005);
  EXPECT_NEAR(result.sparse_perplexity, 5.62, 0.03 * 5.62);
  // 11 of 12 layers read 7 of 8 heads.
  EXPECT_NEAR(result.effective_density(), (1 + 11 * 7.0 / 8) / 12, 1e-9);
}

TEST_F(TrainedModel, APolicyThatSkipsNothingChangesNothing) {
  Policy everything;
  everything.kind = PolicyKind::kOracle;
  everything.density = 1.0;
  const Evaluation result = run(windows(1), everything, 100);
  EXPECT_EQ(result.dense_perplexity, result.sparse_perplexity);
  EXPECT_EQ(result.agreement, 1.0);
  EXPECT_NEAR(result.kl, 0.0, 1e-9);
  EXPECT_EQ(result.tokens, 1024 - 100);
  ASSERT_EQ(result.positions.size(), 8u);
  EXPECT_EQ(result.positions[0].tokens, 128 - 100);
  double loss = 0;
  for (const PositionBucket& bucket : result.positions) {
    EXPECT_EQ(bucket.end - bucket.begin, 128);
    loss += std::log(bucket.dense_perplexity) * static_cast<double>(bucket.tokens);
  }
  EXPECT_NEAR(std::exp(loss / (1024 - 100)), result.dense_perplexity, 1e-9);
  EXPECT_EQ(result.effective_density(), 1.0);
}

TEST_F(TrainedModel, TheOracleBeatsRandomHeadsAndTheWindowBeatsNothing) {
  if (few_) GTEST_SKIP() << "six whole windows take too long with sanitizers";
  const Windows some = windows(2);
  Policy policy;
  policy.dense_layers = {0};
  policy.density = 0.5;
  policy.kind = PolicyKind::kOracle;
  const Evaluation oracle = run(some, policy);
  policy.fallback = Fallback::kNone;
  const double zero = run(some, policy, 0, oracle.dense_perplexity).ratio();
  policy.kind = PolicyKind::kRandom;
  const double random = run(some, policy, 0, oracle.dense_perplexity).ratio();
  EXPECT_LT(oracle.ratio(), 1.03);
  EXPECT_GT(zero, 1.5);
  EXPECT_GT(random, 5 * zero);
}

TEST_F(TrainedModel, OneByOneAndBatchedAreEqual) {
  const Windows some = windows(3);
  Policy paper;
  paper.kind = PolicyKind::kOracle;
  paper.fallback = Fallback::kNone;
  paper.density = 0.75;
  const int prompt = few_ ? 1000 : 700;
  const Evaluation alone = run(some, paper, prompt);
  const Evaluation batched = run(some, paper, prompt, 0, 2);
  EXPECT_EQ(alone.tokens, batched.tokens);
  EXPECT_EQ(alone.kv_bytes, batched.kv_bytes);
  EXPECT_EQ(alone.dense_kv_bytes, batched.dense_kv_bytes);
  EXPECT_EQ(alone.agreement, batched.agreement);
  EXPECT_NEAR(alone.sparse_perplexity, batched.sparse_perplexity, 1e-9);
  EXPECT_NEAR(alone.dense_perplexity, batched.dense_perplexity, 1e-9);
}

/// The union of the active neurons over tokens of eight texts: 25.1 % in slow f32 PyTorch code. The
/// neurons left out are zero, so nothing changes.
TEST_F(TrainedModel, TheNeuronsThatAreActiveAreEnough) {
  Windows some = windows(8);
  Policy policy;
  policy.neurons = NeuronChoice::kOracle;
  const Evaluation result = run(some, policy, few_ ? 1016 : 960, 0, 8);
  if (!few_) {
    EXPECT_NEAR(result.neuron_share, 0.251, 0.02);
  }
  EXPECT_NEAR(result.ratio(), 1.0, 1e-9);
  EXPECT_NEAR(result.kl, 0.0, 1e-9);
}

/// Copies of the weights in four bits find the active neurons: 40 % of all (the first layer wants
/// most of them) are enough for tokens of one text, 60 % of the union of eight.
TEST_F(TrainedModel, CopiesOfFourBitsFindTheActiveNeurons) {
  auto routers = std::make_shared<sparsity::Routers>();
  routers->hidden = file_->config().hidden;
  routers->ffn = file_->config().ffn;
  routers->batches = {1, 8};
  routers->recalls = {0.99};
  routers->mlps.resize(file_->config().layers);
  for (sparsity::MlpRouter& mlp : routers->mlps) {
    mlp.unit = 0.1f;
    mlp.neurons = {2 * routers->ffn / 5, 3 * routers->ffn / 5};
  }
  routers->mlps[0].neurons[1] = routers->ffn;
  model::copy_up_projections(*file_, *routers);
  Policy policy;
  policy.neurons = NeuronChoice::kRouted;
  policy.routers = routers;
  for (const int batch : {1, 8}) {
    const Evaluation result = run(windows(batch), policy, few_ ? 1016 : 960, 0, batch);
    EXPECT_NEAR(result.neuron_share, batch == 1 ? 0.4 : (11 * 0.6 + 1) / 12, 1e-3);
    if (few_) continue;
    EXPECT_NEAR(result.ratio(), 1.0, 0.003) << batch;
    EXPECT_GT(result.agreement, 0.97) << batch;
  }
}

}  // namespace
}  // namespace polar::study
