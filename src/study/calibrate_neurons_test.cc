// Calibration of a ReLU model: points that choose neurons too.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "model/routed_neurons.h"
#include "study/calibrate.h"
#include "study/neuron_recall.h"
#include "study/report.h"
#include "study/sampled_tokens.h"

namespace polar::study {
namespace {

using testing::HasSubstr;

constexpr int kContext = 112, kVocabulary = 96;

std::vector<int32_t> encode(const std::string& text, bool) {
  std::vector<int32_t> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c) % kVocabulary);
  return tokens;
}

class CalibrateNeurons : public testing::Test {
 protected:
  void SetUp() override {
    device_ = std::move(backend::make_cpu_device({})).value();
    auto file = model::ModelFile::open(std::string(POLAR_GOLDEN_DIR) + "/models/opt");
    ASSERT_TRUE(file.ok()) << file.error().message;
    file_ = std::make_unique<model::ModelFile>(std::move(file).value());
    auto weights = model::load_weights(*device_, *file_);
    ASSERT_TRUE(weights.ok()) << weights.error().message;
    weights_ = std::make_unique<model::Weights>(std::move(weights).value());
    std::mt19937_64 random(11);
    for (int i = 0; i < 6; ++i) documents_.push_back(sample_text(random));
    options_.max_losses = {0.2, 0.01};
    options_.context = kContext;
    options_.importance_windows = 1;
    options_.held_out_windows = 3;
    options_.needles = 0;
    options_.kv_dtype = DType::kF32;
    options_.text_name = "text.txt";
    options_.neurons = [this](const Windows& windows) { return routers(windows); };
  }
  ~CalibrateNeurons() override { std::filesystem::remove_all(root_); }

  /// One window of text drawn from the model itself: characters whose code modulo the vocabulary is
  /// the token. None is the separator of documents.
  std::string sample_text(std::mt19937_64& random) {
    std::string text(1, 'a');
    for (const int32_t token : sample_tokens(*device_, *weights_, kContext - 1, random))
      text += static_cast<char>(token + kVocabulary);
    return text;
  }

  Result<sparsity::Routers> routers(const Windows& windows) {
    measured_windows_ = windows.count;
    NeuronRecallOptions options;
    options.kv_dtype = DType::kF32;
    options.recalls = {0.6, 0.8, 0.9, 0.97, 0.999};
    POLAR_ASSIGN(NeuronRecall measured,
                 measure_neuron_recall(*device_, *file_, *weights_, windows, options));
    union_share_ = measured.union_share;
    computed_share_ = measured.computed_share;
    return std::move(measured.routers);
  }

  Result<Calibration> run(const std::string& name) {
    return calibrate(*device_, *weights_, "f00d", documents_, encode, -1, (root_ / name).string(),
                     options_);
  }
  std::string profile_text(const std::string& name) const {
    std::ifstream in(root_ / name / "profile.json", std::ios::binary);
    std::ostringstream bytes;
    bytes << in.rdbuf();
    return bytes.str();
  }

  const std::filesystem::path root_ = std::filesystem::temp_directory_path() /
                                      ("polar_calibrate_neurons_" + std::to_string(getpid()));
  std::unique_ptr<backend::Device> device_;
  std::unique_ptr<model::ModelFile> file_;
  std::unique_ptr<model::Weights> weights_;
  std::vector<std::string> documents_;
  CalibrateOptions options_;
  int measured_windows_ = 0;
  std::vector<double> union_share_, computed_share_;
};

TEST_F(CalibrateNeurons, PointsNameARecallWhoseLossIsMeasuredTogetherWithTheHeads) {
  const auto calibration = run("a");
  ASSERT_TRUE(calibration.ok()) << calibration.error().message;
  EXPECT_EQ(measured_windows_, options_.importance_windows);
  const sparsity::Profile& profile = calibration->profile;
  ASSERT_EQ(profile.points.size(), 3u);
  EXPECT_EQ(profile.points[0].recall, 0);
  const sparsity::OperatingPoint& wide = profile.points[2];
  EXPECT_EQ(wide.name, "20%");
  EXPECT_GT(wide.recall, 0);
  EXPECT_LT(wide.quality.neuron_share, 0.9);
  EXPECT_LT(wide.quality.effective_density, 1);
  for (const sparsity::OperatingPoint& point : profile.points)
    EXPECT_LE(point.quality.perplexity_ratio - 1, point.quality.max_loss) << point.name;
  // The tighter budget leaves fewer neurons out.
  EXPECT_TRUE(profile.points[1].recall == 0 || profile.points[1].recall > wide.recall);
  EXPECT_GE(profile.points[1].quality.neuron_share, wide.quality.neuron_share);

  const auto read = sparsity::read_profile((root_ / "a").string());
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->points[2].recall, wide.recall);

  // The report draws a line per batch size, and says the share of each layer.
  const std::string report = report_html(*calibration, "m");
  const int count = sparsity::neurons_for(*profile.routers, 1, 8, wide.recall);
  EXPECT_THAT(report, HasSubstr(fmt::format("layer 1, batch 8: {:.1f} % of the neurons",
                                            100.0 * count / profile.routers->ffn)));
  EXPECT_THAT(report, HasSubstr(">batch 64</text>"));
}

TEST_F(CalibrateNeurons, ARunThatIsDoneAndAFreshOneGiveTheSameBytes) {
  ASSERT_TRUE(run("a").ok());
  const std::string first = profile_text("a");
  int trials = 0;
  options_.progress = [&](const std::string& stage, int, int) {
    trials += stage.find("neurons, recall") != std::string::npos;
  };
  ASSERT_TRUE(run("a").ok());
  EXPECT_EQ(trials, 0);
  EXPECT_EQ(profile_text("a"), first);
  ASSERT_TRUE(run("b").ok());
  EXPECT_GT(trials, 0);
  EXPECT_EQ(profile_text("b"), first);
}

/// Heads and neurons by routers at once: found, written, opened and run. Routers that know nothing
/// choose the heads.
TEST_F(CalibrateNeurons, APointWithRoutedHeadsAndNeuronsComesBackFromItsFolder) {
  const model::ModelConfig& config = file_->config();
  auto heads = std::make_shared<sparsity::Routers>();
  heads->heads.resize(config.layers);
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal;
  for (sparsity::HeadRouter& head : heads->heads) {
    head.bias.resize(config.kv_heads);
    head.weight.resize(static_cast<size_t>(config.kv_heads) * config.hidden);
    for (float& value : head.weight) value = normal(random);
  }
  options_.routers = heads;
  options_.policies = {"routed", "hybrid"};
  options_.max_losses = {4.5};
  const auto calibration = run("a");
  ASSERT_TRUE(calibration.ok()) << calibration.error().message;
  const sparsity::OperatingPoint& point = calibration->profile.points[1];
  ASSERT_GT(point.limits.routed, 0) << point.name;
  ASSERT_GT(point.recall, 0);

  auto opened = sparsity::open_profile(
      (root_ / "a").string(), {config.layers, config.hidden, config.kv_heads, config.ffn}, "f00d");
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  ASSERT_TRUE(model::prepare_neurons(*file_, "a", *opened).ok());
  EXPECT_EQ(opened->routers->heads[1].weight, heads->heads[1].weight);
  auto planner = point_planner(*device_, *opened, 1);
  ASSERT_TRUE(planner.ok()) << planner.error().message;
  // On the windows that decided, it does what calibration says of it.
  Windows held_out;
  held_out.context = kContext;
  for (const int window : {0, 1, 2, 3}) {
    const int of = options_.importance_windows + options_.held_out_windows;
    const bool importance = window * options_.importance_windows / of !=
                            (window + 1) * options_.importance_windows / of;
    if (importance) continue;
    const auto tokens = encode(documents_[window * static_cast<int>(documents_.size()) / of], true);
    held_out.tokens.insert(held_out.tokens.end(), tokens.begin(), tokens.end());
    ++held_out.count;
  }
  ASSERT_EQ(held_out.count, options_.held_out_windows);
  EvaluateOptions options;
  options.prompt = options_.prompt_tokens();
  options.kv_dtype = DType::kF32;
  const auto measured = evaluate(*device_, *weights_, held_out, planner->get(), options);
  ASSERT_TRUE(measured.ok()) << measured.error().message;
  EXPECT_NEAR(measured->ratio(), point.quality.perplexity_ratio, 1e-6);
  EXPECT_NEAR(measured->effective_density(), point.quality.effective_density, 1e-6);
  EXPECT_NEAR(measured->neuron_share, point.quality.neuron_share, 1e-6);
  EXPECT_LT(measured->neuron_share, 1);
}

TEST_F(CalibrateNeurons, WithoutRoutersPointsComputeAllNeurons) {
  options_.neurons = nullptr;
  const auto calibration = run("a");
  ASSERT_TRUE(calibration.ok()) << calibration.error().message;
  for (const auto& point : calibration->profile.points) {
    EXPECT_EQ(point.recall, 0);
    EXPECT_EQ(point.quality.neuron_share, 1);
  }
  EXPECT_EQ(profile_text("a").find("recall"), std::string::npos);
}

TEST_F(CalibrateNeurons, RecallGrowsWithTheNeuronsAndTheUnionWithTheBatch) {
  Windows windows;
  windows.context = kContext;
  windows.count = 2;
  for (int i = 0; i < 2; ++i) {
    const auto tokens = encode(documents_[i], false);
    windows.tokens.insert(windows.tokens.end(), tokens.begin(), tokens.end());
  }
  const auto measured = routers(windows);
  ASSERT_TRUE(measured.ok());
  const sparsity::Routers& routers = *measured;
  const size_t sizes = routers.batches.size();
  for (size_t s = 1; s < sizes; ++s) EXPECT_GT(union_share_[s], union_share_[s - 1]);
  for (size_t i = sizes; i < computed_share_.size(); ++i)
    EXPECT_GE(computed_share_[i], computed_share_[i - sizes]);
  // Copies of four bits rank a layer's neurons well: 97 % of the active ones of a row, which are
  // about half of all, take little more than these.
  EXPECT_LT(computed_share_[3 * sizes], 1.5 * union_share_[0]);
}

}  // namespace
}  // namespace polar::study
