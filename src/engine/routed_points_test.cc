// Points whose heads or neurons are chosen by routers, in the engine.

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>

#include "engine/load_tokenizer.h"
#include "engine/test_requests.h"
#include "model/model_file.h"
#include "model/routed_neurons.h"

namespace polar::engine {
namespace {

class RoutedPoints : public ::testing::Test {
 protected:
  void open(const std::string& path) {
    auto device = backend::make_cpu_device({2});
    ASSERT_TRUE(device.ok()) << device.error().message;
    device_ = std::move(device).value();
    auto file = model::ModelFile::open(path);
    ASSERT_TRUE(file.ok()) << file.error().message;
    file_ = std::make_unique<model::ModelFile>(std::move(file).value());
    auto weights = model::load_weights(*device_, *file_);
    ASSERT_TRUE(weights.ok()) << weights.error().message;
    weights_ = std::make_unique<model::Weights>(std::move(weights).value());
  }
  void open_small() { open(std::string(POLAR_GOLDEN_DIR) + "/models/opt"); }
  const model::ModelConfig& config() const { return file_->config(); }

  sparsity::Routers empty_routers() const {
    sparsity::Routers routers;
    routers.hidden = config().hidden;
    routers.kv_heads = config().kv_heads;
    routers.ffn = config().ffn;
    routers.heads.resize(config().layers);
    routers.mlps.resize(config().layers);
    return routers;
  }

  /// Dense, and a point whose MLPs compute `neurons` [batches] of theirs, by copies of the weights.
  sparsity::Profile neuron_profile(const std::vector<int>& batches,
                                   const std::vector<int>& neurons) const {
    sparsity::Routers routers = empty_routers();
    routers.recalls = {0.9};
    routers.batches = batches;
    for (sparsity::MlpRouter& mlp : routers.mlps) {
      mlp.unit = 0.1f;
      mlp.neurons = neurons;
    }
    sparsity::Profile profile = sparsity::dense_profile(config().layers, config().kv_heads);
    profile.points.push_back(profile.points[0]);
    profile.points[1].name = "neurons";
    profile.points[1].recall = 0.9;
    profile.routers = std::make_shared<const sparsity::Routers>(std::move(routers));
    EXPECT_TRUE(model::prepare_neurons(*file_, "profile", profile).ok());
    return profile;
  }

  std::unique_ptr<Engine> make_engine(
      const sparsity::Profile* profile,
      EngineOptions::Neurons neurons = EngineOptions::Neurons::kAlways) const {
    EngineOptions options;
    options.kv_dtype = DType::kF32;
    options.max_batch = 8;
    options.max_length = 128;
    options.prefix_cache = false;
    options.neurons = neurons;
    auto engine = Engine::create(*device_, *weights_, profile, options);
    EXPECT_TRUE(engine.ok()) << engine.error().message;
    return std::move(engine).value();
  }

  std::vector<GenerationRequest> requests(int count, int max_tokens, int point) const {
    std::vector<GenerationRequest> requests;
    for (int i = 0; i < count; ++i) {
      requests.push_back(request_of(random_tokens(40 + 5 * i, i, config().vocabulary), max_tokens));
      requests.back().point = point;
      requests.back().ignore_eos = true;
    }
    return requests;
  }

  static std::vector<std::vector<int32_t>> tokens_of(const std::vector<Outcome>& outcomes) {
    std::vector<std::vector<int32_t>> tokens;
    for (const Outcome& outcome : outcomes) tokens.push_back(outcome.tokens);
    return tokens;
  }
  static std::vector<std::vector<int32_t>> run_alone(
      Engine& engine, const std::vector<GenerationRequest>& requests) {
    std::vector<std::vector<int32_t>> tokens;
    for (const auto& request : requests) tokens.push_back(run_all(engine, {request})[0].tokens);
    return tokens;
  }

  std::unique_ptr<backend::Device> device_;
  std::unique_ptr<model::ModelFile> file_;
  std::unique_ptr<model::Weights> weights_;
};

/// About half of a random model's neurons are off: the 16 that are most surely off at one row, and
/// the 4 at two rows, can be left out, and nothing changes. More rows compute all.
TEST_F(RoutedPoints, NeuronsThatAreSurelyOffChangeNoToken) {
  open_small();
  const sparsity::Profile profile = neuron_profile({1, 2}, {64, 76});
  const auto engine = make_engine(&profile);
  const auto expected = run_alone(*make_engine(nullptr), requests(6, 40, 0));
  EXPECT_EQ(run_alone(*engine, requests(6, 40, 1)), expected);
  EXPECT_DOUBLE_EQ(engine->stats().neuron_density, 64.0 / 80);
  EXPECT_EQ(tokens_of(run_all(*engine, requests(2, 40, 1))),
            run_alone(*engine, requests(2, 40, 0)));
  EXPECT_EQ(tokens_of(run_all(*engine, requests(6, 40, 1))), expected);
}

TEST_F(RoutedPoints, DenseRequestsBesideSparseOnesGetDenseTokens) {
  open_small();
  const sparsity::Profile profile = neuron_profile({1, 16}, {16, 24});
  const auto dense = run_alone(*make_engine(nullptr), requests(6, 60, 0));
  const auto engine = make_engine(&profile);
  EXPECT_NE(run_alone(*engine, requests(6, 60, 1)), dense);  // so few neurons do change something
  EXPECT_EQ(run_alone(*engine, requests(6, 60, 0)), dense);
  const int64_t before = engine->stats().steps;
  std::vector<GenerationRequest> mixed = requests(6, 60, 1);
  for (const size_t i : {1, 3, 4}) mixed[i].point = 0;
  const auto outcomes = run_all(*engine, mixed);
  EXPECT_LT(engine->stats().steps - before, 3 * 60);  // they did share steps
  for (const size_t i : {1, 3, 4}) EXPECT_EQ(outcomes[i].tokens, dense[i]) << i;
}

/// A row that wants more neurons than its neighbours gets them: here so many that they are all.
TEST_F(RoutedPoints, AStepComputesWhatItsMostDemandingRowWants) {
  open_small();
  sparsity::Profile profile = neuron_profile({1}, {16});
  sparsity::Routers routers = *profile.routers;
  routers.recalls = {0.5, 0.9};
  routers.batches = {1, 8};
  for (sparsity::MlpRouter& mlp : routers.mlps) mlp.neurons = {16, 24, 80, 80};
  profile.routers = std::make_shared<const sparsity::Routers>(std::move(routers));
  profile.points.push_back(profile.points[1]);
  profile.points[2].name = "few neurons";
  profile.points[2].recall = 0.5;
  const auto dense = run_alone(*make_engine(nullptr), requests(4, 60, 0));
  const auto engine = make_engine(&profile);
  EXPECT_NE(run_alone(*engine, requests(4, 60, 2)), dense);
  std::vector<GenerationRequest> mixed = requests(4, 60, 2);
  mixed[2].point = 1;
  EXPECT_EQ(run_all(*engine, mixed)[2].tokens, dense[2]);
}

/// The smallest of models: asking routers takes longer than everything.
/// Leaving out one neuron of 80 does not pay for a router, whatever the machine.
TEST_F(RoutedPoints, StepsRunDenseWhereNeuronsDoNotPay) {
  open_small();
  const sparsity::Profile profile = neuron_profile({1, 16}, {79, 79});
  const auto engine = make_engine(&profile, EngineOptions::Neurons::kWherePaying);
  const auto dense = run_alone(*engine, requests(3, 40, 0));
  EXPECT_EQ(run_alone(*engine, requests(3, 40, 1)), dense);
  EXPECT_EQ(engine->stats().neuron_density, 1.0);
}

/// Half the heads of a row read all, as random routers say, the others the page being filled.
TEST_F(RoutedPoints, RoutedHeadsGiveTheSameTokensAloneAndInABatch) {
  open_small();
  sparsity::Routers routers = empty_routers();
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (sparsity::HeadRouter& head : routers.heads) {
    head.weight.resize(static_cast<size_t>(config().kv_heads) * config().hidden);
    head.bias.resize(config().kv_heads);
    for (float& value : head.weight) value = normal(random);
  }
  sparsity::Profile profile =
      sparsity::window_profile(config().layers, config().kv_heads, 0, 0, {});
  profile.points[1].limits.routed = config().kv_heads / 2;
  for (backend::UnitBudget& budget : profile.points[1].budgets)
    budget = {backend::ReadKind::kRouted, backend::ReadKind::kWindow, 0};
  profile.routers = std::make_shared<const sparsity::Routers>(std::move(routers));

  const auto engine = make_engine(&profile);
  const auto dense = run_alone(*engine, requests(6, 50, 0));
  const auto alone = run_alone(*engine, requests(6, 50, 1));
  EXPECT_NE(alone, dense);
  const auto together = run_all(*engine, requests(6, 50, 1));
  EXPECT_EQ(tokens_of(together), alone);
  std::vector<GenerationRequest> mixed = requests(6, 50, 1);
  for (const size_t i : {0, 2, 5}) mixed[i].point = 0;
  const auto beside = run_all(*engine, mixed);
  for (size_t i = 0; i < mixed.size(); ++i)
    EXPECT_EQ(beside[i].tokens, mixed[i].point == 0 ? dense[i] : alone[i]) << i;

  // Of the pages, the filled ones are read by half of the heads, the page being filled by all.
  double pages = 0, read = 0;
  for (int position = 40; position < 40 + 49; ++position) {
    const int full = position / backend::kPageTokens;
    pages += full + 1;
    read += full / 2.0 + 1;
  }
  EXPECT_NEAR(together[0].usage.kv_bytes_read / together[0].usage.kv_bytes_dense, read / pages,
              1e-9);

  // Other routers choose other heads.
  sparsity::Routers others = *profile.routers;
  for (sparsity::HeadRouter& head : others.heads) {
    for (float& value : head.weight) value = -value;
  }
  profile.routers = std::make_shared<const sparsity::Routers>(std::move(others));
  EXPECT_NE(run_alone(*make_engine(&profile), requests(6, 50, 1)), alone);
}

/// A trained model, of whose neurons a token activates 5 %, and a batch of eight a quarter: with
/// many more than that nothing changes, alone and in a batch.
TEST_F(RoutedPoints, ATrainedModelSaysTheSameWithSomeOfItsNeurons) {
  const char* shared = std::getenv("POLAR_SHARED");
  if (shared == nullptr) GTEST_SKIP() << "POLAR_SHARED is unset: the trained model is not here";
  open(std::string(shared) + "/models/opt-42m-docs");
  std::ifstream in(std::string(shared) + "/text/validation.txt", std::ios::binary);
  std::string text(24000, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  auto tokenizer = load_tokenizer(*file_);
  ASSERT_TRUE(tokenizer.ok());
  const std::vector<int32_t> all = tokenizer->encode(text, false);
  ASSERT_GT(all.size(), 8u * 400);
  const bool few = std::getenv("POLAR_SANITIZED") != nullptr;
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < (few ? 2 : 8); ++i) {
    const auto begin = all.begin() + i * 400;
    requests.push_back(request_of({begin, begin + 64}, few ? 6 : 48));
    requests.back().ignore_eos = true;
  }
  sparsity::Profile profile = neuron_profile({1, 8}, {config().ffn / 2, config().ffn * 3 / 4});
  // The first layer's neurons hardly ever rest.
  sparsity::Routers routers = *profile.routers;
  routers.mlps[0] = {};
  profile.routers = std::make_shared<const sparsity::Routers>(std::move(routers));
  const auto engine = make_engine(&profile);
  const auto dense = run_alone(*engine, requests);
  const double before = engine->stats().neuron_density;
  EXPECT_EQ(before, 1.0);
  for (auto& request : requests) request.point = 1;
  const auto sparse = make_engine(&profile);
  EXPECT_EQ(run_alone(*sparse, requests), dense);
  EXPECT_NEAR(sparse->stats().neuron_density, (1 + 11 * 0.5) / 12, 1e-9);
  EXPECT_EQ(tokens_of(run_all(*sparse, requests)), dense);
  EXPECT_LT(sparse->stats().neuron_density, 0.9);
}

}  // namespace
}  // namespace polar::engine
