#include "study/report.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <sstream>

#include "model/small_config.h"
#include "study/policy.h"
#include "study/sampled_tokens.h"
#include "study/unit_options.h"

namespace polar::study {
namespace {

using testing::HasSubstr;

std::vector<int32_t> encode(const std::string& text, bool special) {
  std::vector<int32_t> tokens;
  if (special) tokens.push_back(1);
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

constexpr int kContext = 320;

/// One window of text drawn from the model itself.
std::string sample_text(backend::Device& device, const model::Weights& weights,
                        std::mt19937_64& random) {
  const std::vector<int32_t> tokens = sample_tokens(device, weights, kContext - 1, random);
  return {tokens.begin(), tokens.end()};
}

std::string read(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << in.rdbuf();
  return bytes.str();
}

class Calibrate : public testing::Test {
 protected:
  void SetUp() override {
    device_ = std::move(backend::make_cpu_device({})).value();
    weights_ = std::make_unique<model::Weights>(
        std::move(model::dummy_weights(*device_, model::small_config({0, 0}), DType::kF32, 3))
            .value());
    std::mt19937_64 random(11);
    for (int i = 0; i < 9; ++i) documents_.push_back(sample_text(*device_, *weights_, random));
    options_.max_losses = {0.05, 0.01};
    options_.context = kContext;
    options_.importance_windows = 1;
    options_.held_out_windows = 3;
    options_.needles = 6;
    options_.trials = 12;
    options_.kv_dtype = DType::kF32;
    options_.text_name = "text.txt";
  }
  ~Calibrate() override { std::filesystem::remove_all(root_); }

  std::string folder(const std::string& name) const { return (root_ / name).string(); }

  /// Stages that measured something, in their order, as progress named them.
  Result<Calibration> run(const std::string& name, std::vector<std::string>* stages = nullptr) {
    CalibrateOptions options = options_;
    options.progress = [&](const std::string& stage, int, int) {
      if (stages != nullptr && (stages->empty() || stages->back() != stage))
        stages->push_back(stage);
    };
    return calibrate(*device_, *weights_, "f00d", documents_, encode, 1, folder(name), options);
  }

  const std::filesystem::path root_ =
      std::filesystem::temp_directory_path() / ("polar_calibrate_" + std::to_string(getpid()));
  std::unique_ptr<backend::Device> device_;
  std::unique_ptr<model::Weights> weights_;
  std::vector<std::string> documents_;
  CalibrateOptions options_;
};

TEST_F(Calibrate, TheSameSeedGivesTheSameBytes) {
  ASSERT_TRUE(run("one").ok());
  ASSERT_TRUE(run("two").ok());
  const std::string profile = read(root_ / "one" / "profile.json");
  EXPECT_FALSE(profile.empty());
  EXPECT_EQ(profile, read(root_ / "two" / "profile.json"));
  EXPECT_EQ(read(root_ / "one" / "calibration.json"), read(root_ / "two" / "calibration.json"));
}

TEST_F(Calibrate, ARunThatIsDoneMeasuresNothingAgain) {
  std::vector<std::string> first, again;
  ASSERT_TRUE(run("one", &first).ok());
  const std::string profile = read(root_ / "one" / "profile.json");
  EXPECT_THAT(first, testing::Contains(HasSubstr("beside dense")));
  std::filesystem::remove(root_ / "one" / "profile.json");
  ASSERT_TRUE(run("one", &again).ok());
  EXPECT_THAT(again, testing::IsEmpty());
  EXPECT_EQ(profile, read(root_ / "one" / "profile.json"));
}

/// A point by bytes stays within them, loses less where it may read more, and beside it the points
/// by loss are what they are without it.
TEST_F(Calibrate, PointsByBytesStayWithinThem) {
  ASSERT_TRUE(run("one").ok());
  const auto alone = nlohmann::ordered_json::parse(read(root_ / "one" / "profile.json"));
  options_.max_bytes = {0.35, 0.6};
  const auto made = run("two");
  ASSERT_TRUE(made.ok()) << made.error().message;
  const auto both = nlohmann::ordered_json::parse(read(root_ / "two" / "profile.json"));
  for (size_t i = 0; i < alone["points"].size(); ++i)
    EXPECT_EQ(alone["points"][i], both["points"][i]);
  const std::vector<sparsity::OperatingPoint>& points = made->profile.points;
  ASSERT_EQ(points.size(), 5u);
  EXPECT_EQ(points[3].name, "bytes-60%");
  EXPECT_EQ(points[4].name, "bytes-35%");
  EXPECT_LE(points[3].quality.effective_density, 0.6 * 1.01);
  EXPECT_LE(points[4].quality.effective_density, 0.35 * 1.01);
  EXPECT_LT(points[3].quality.perplexity_ratio, points[4].quality.perplexity_ratio);
  options_.max_bytes = {1e-5};
  EXPECT_THAT(run("three").error().message, HasSubstr("--max-bytes: found 0.001%, expected"));
}

/// A run that was killed leaves a state that holds its first measurements.
TEST_F(Calibrate, ARunThatWasKilledGoesOnToTheSameProfile) {
  std::vector<std::string> whole;
  ASSERT_TRUE(run("one", &whole).ok());
  const std::string profile = read(root_ / "one" / "profile.json");
  const auto state = nlohmann::ordered_json::parse(read(root_ / "one" / "calibration.json"));
  const auto kept = static_cast<int>(state["measured"].size());
  ASSERT_GT(kept, 6);
  for (int left = 0; left < kept; left += 7) {
    nlohmann::ordered_json cut = state;
    cut["measured"] = nlohmann::ordered_json::object();
    for (const auto& [key, value] : state["measured"].items()) {
      if (static_cast<int>(cut["measured"].size()) < left) cut["measured"][key] = value;
    }
    const std::string name = "cut" + std::to_string(left);
    std::filesystem::create_directories(root_ / name);
    std::ofstream(root_ / name / "calibration.json") << cut.dump();
    std::vector<std::string> stages;
    ASSERT_TRUE(run(name, &stages).ok());
    EXPECT_EQ(profile, read(root_ / name / "profile.json")) << left;
    EXPECT_LE(stages.size(), whole.size() - (left > 0 ? 1 : 0)) << left;
  }
}

TEST_F(Calibrate, EveryPointKeepsItsBudgetOnTheHeldOutSlice) {
  const auto made = run("one");
  ASSERT_TRUE(made.ok());
  const sparsity::Profile& profile = made->profile;
  ASSERT_EQ(profile.points.size(), 3u);
  EXPECT_EQ(profile.points[1].name, "1%");
  EXPECT_EQ(profile.points[2].name, "5%");
  for (size_t p = 1; p < 3; ++p) {
    const sparsity::Quality& quality = profile.points[p].quality;
    EXPECT_LE(quality.perplexity_ratio - 1, quality.max_loss);
    EXPECT_GE(quality.sparse_needles, quality.dense_needles);
    EXPECT_EQ(quality.needles, 4);
    EXPECT_LT(quality.effective_density, 1);
  }
  // The budgets bind: the tight one had to turn down what the loose one takes.
  EXPECT_LT(profile.points[2].quality.effective_density,
            profile.points[1].quality.effective_density);
  // What the profile says is what an evaluation of its point on the same windows says.
  const auto stored = sparsity::read_profile(folder("one"));
  ASSERT_TRUE(stored.ok());
  EXPECT_EQ(stored->points[2].quality.perplexity_ratio, profile.points[2].quality.perplexity_ratio);
}

TEST_F(Calibrate, RanksUnitsByWhatTheLossDoesWithoutThem) {
  const auto made = run("one");
  ASSERT_TRUE(made.ok());
  ASSERT_EQ(made->text_importance.size(), 4u);
  for (const double loss : made->text_importance) EXPECT_GT(loss, 0);
  ASSERT_EQ(made->retrieval_importance.size(), 4u);
}

TEST_F(Calibrate, TheCurveIsMeasuredOnceAndReported) {
  for (CurveSetting& setting : curve_settings(weights_->config, nullptr, 1, 2)) {
    // The oracle reads a model's file, which this model does not have.
    if (setting.values.kind != PolicyKind::kOracle) options_.curve.push_back(std::move(setting));
  }
  options_.curve_planner = [&](const Policy& policy, const std::vector<int>& ranked) {
    return make_planner(policy, *device_, weights_->config, ranked);
  };
  std::vector<std::string> again;
  const auto made = run("one");
  ASSERT_TRUE(made.ok() && run("one", &again).ok());
  EXPECT_THAT(again, testing::IsEmpty());
  ASSERT_EQ(made->curve.size(), options_.curve.size());
  const auto rows = curve_rows(*made);
  EXPECT_EQ(rows.size(), made->curve.size() + made->trials.size() + 2);
  const std::string html = report_html(*made, "a <model>");
  EXPECT_THAT(html, HasSubstr("a &lt;model&gt;: quality against bytes"));
  for (const CurvePoint& point : made->curve) {
    EXPECT_THAT(html, HasSubstr("<td>" + point.setting + "</td>"));
    EXPECT_GT(point.effective_density, 0);
  }
  for (const char* network : {"http:", "https:", "<script", "src=", "url(", "@import"})
    EXPECT_EQ(html.find(network), std::string::npos) << network;
  // Half of the units in full reads less than all but one of four, and loses more.
  const auto of = [&](const std::string& setting) {
    const auto found =
        std::find_if(made->curve.begin(), made->curve.end(), [&](const CurvePoint& point) {
          return point.policy == "static, else window" && point.setting == setting;
        });
    EXPECT_NE(found, made->curve.end()) << setting;
    return *found;
  };
  EXPECT_LT(of("2 of 4 units").effective_density, of("3 of 4 units").effective_density);
  EXPECT_GT(of("no unit").loss, of("3 of 4 units").loss);
}

/// Routers that know nothing: what they choose is as good as any choice.
std::shared_ptr<const sparsity::Routers> random_routers(const model::ModelConfig& config) {
  auto routers = std::make_shared<sparsity::Routers>();
  routers->hidden = config.hidden;
  routers->kv_heads = config.kv_heads;
  routers->ffn = config.ffn;
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal;
  routers->heads.resize(config.layers);
  routers->mlps.resize(config.layers);
  for (sparsity::HeadRouter& head : routers->heads) {
    head.bias.resize(config.kv_heads);
    head.weight.resize(static_cast<size_t>(config.kv_heads) * config.hidden);
    for (float& value : head.weight) value = normal(random);
  }
  return routers;
}

TEST_F(Calibrate, WithRoutersAllPoliciesAreComparedAtEqualBytes) {
  options_.routers = random_routers(weights_->config);
  options_.max_losses = {0.02};
  options_.trials = 40;
  options_.compare = true;
  const auto made = run("one");
  ASSERT_TRUE(made.ok());
  ASSERT_EQ(made->comparisons.size(), 1u);
  const double bytes = made->profile.points[1].quality.effective_density;
  std::set<std::string> policies;
  double best = 1e30;
  for (const Trial& trial : made->comparisons[0].policies) {
    policies.insert(trial.policy);
    EXPECT_LE(trial.effective_density, bytes + 0.02) << trial.point.name;
    best = std::min(best, trial.loss);
  }
  // A policy that cannot read as little as the winner stands aside.
  EXPECT_GE(policies.size(), 2u);
  EXPECT_TRUE(policies.count("routed") + policies.count("hybrid") > 0);
  // The point that was chosen keeps its budget; whoever is above it at these bytes does not.
  EXPECT_LE(best, 0.02);
  const auto rows = comparison_rows(*made);
  EXPECT_EQ(rows.size(), made->comparisons[0].policies.size());
  EXPECT_THAT(report_html(*made, "m"), HasSubstr("Policies at equal bytes"));
  // Routers are stored where a point needs them, and a run that goes on finds the same.
  const bool routed = made->profile.routes_units(0) || made->profile.routes_units(1);
  EXPECT_EQ(routed, std::filesystem::exists(root_ / "one" / "routers.safetensors"));
  std::vector<std::string> again;
  ASSERT_TRUE(run("one", &again).ok());
  EXPECT_THAT(again, testing::IsEmpty());
}

/// Routed candidates alone: what wins is routed, and the profile can be opened and run.
TEST_F(Calibrate, ARoutedPointComesWithItsRouters) {
  sparsity::Profile profile = sparsity::dense_profile(2, 2);
  profile.fingerprint = "f00d";
  Shape shape;
  shape.knob = Shape::Knob::kRouted;
  shape.lower = backend::ReadKind::kWindow;
  shape.routed = 1;
  profile.points.push_back(assign(shape, {{0, 1, 2, 3}, 2, 0, {}, {}}, 4));
  profile.routers = random_routers(weights_->config);
  const model::ModelConfig& config = weights_->config;
  ASSERT_TRUE(sparsity::write_profile(folder("routed"), profile).ok());
  ASSERT_TRUE(sparsity::write_routers(folder("routed"), *profile.routers).ok());
  const auto opened = sparsity::open_profile(
      folder("routed"), {config.layers, config.hidden, config.kv_heads, config.ffn}, "f00d");
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  auto planner = point_planner(*device_, *opened, 1);
  ASSERT_TRUE(planner.ok());
  const std::vector<int32_t> tokens = encode(documents_[0].substr(0, 256), false);
  EvaluateOptions options;
  options.kv_dtype = DType::kF32;
  const auto measured = evaluate(*device_, *weights_, {tokens, 256, 1}, planner->get(), options);
  ASSERT_TRUE(measured.ok());
  EXPECT_NEAR(measured->effective_density(),
              expected_density(opened->points[1], 0, 256, 0, config.kv_heads), 0.01);
}

TEST_F(Calibrate, SaysWhatIsWrong) {
  ASSERT_TRUE(run("one").ok());
  options_.seed = 2;
  EXPECT_THAT(run("one").error().message, HasSubstr("calibration.json: run: found"));
  options_.held_out_windows = 100;
  EXPECT_THAT(run("two").error().message, HasSubstr("text.txt: text: found 9 windows of 320"));
  options_.context = 100000;
  EXPECT_THAT(run("three").error().message, HasSubstr("at least one window of 100000"));
}

/// Leave-one-out of a unit is the KL that an evaluation with all else in full measures.
TEST_F(Calibrate, LeaveOneOutIsTheLossOfAnEvaluationWithoutThatUnit) {
  const std::vector<int32_t> tokens = encode(documents_[0].substr(0, 256), false);
  ImportanceOptions importance;
  importance.fallback.kind = PolicyKind::kWindow;
  importance.fallback.recent = 2;
  importance.kv_dtype = DType::kF32;
  Passage passage = make_passage(tokens, 64, 1);
  passage.scored_rows.pop_back();  // the last row predicts nothing that an evaluation scores
  const auto kl = leave_one_out(*device_, *weights_, {&passage, 1}, importance);
  ASSERT_TRUE(kl.ok());
  for (int unit = 0; unit < 4; ++unit) {
    sparsity::Profile profile = sparsity::window_profile(2, 2, 1, 2, {0, 1});
    profile.points[1].budgets[unit].kind = backend::ReadKind::kWindow;
    auto planner = point_planner(*device_, profile, 1);
    ASSERT_TRUE(planner.ok());
    EvaluateOptions options;
    options.prompt = 64;
    options.kv_dtype = DType::kF32;
    const auto whole = evaluate(*device_, *weights_, {tokens, 256, 1}, planner->get(), options);
    ASSERT_TRUE(whole.ok());
    // Beside it, the prompt's last row scores without a loss.
    const auto rows = static_cast<double>(whole->tokens);
    EXPECT_NEAR((*kl)[unit], whole->kl * rows / (rows - 1), 1e-4 * (*kl)[unit] + 1e-7) << unit;
  }
}

/// The error of an option is how far the unit's output moves: nothing where all pages are read,
/// less with more pages, and by definition for one row and unit.
TEST_F(Calibrate, OptionErrorsAreDistancesFromTheFullOutput) {
  const std::vector<int32_t> tokens = encode(documents_[0].substr(0, 256), false);
  const Passage passage = make_passage(tokens, 0, 3);
  Deal deal = unit_options(0, 256, 1.0 / 16);
  deal.options.push_back({backend::ReadKind::kPages, backend::ReadKind::kWindow, 1, 16});  // all
  deal.options.push_back({backend::ReadKind::kNone});
  const auto errors = option_errors(*device_, *weights_, {&passage, 1}, deal,
                                    {DType::kF32, backend::PageScore::kCodes, {}});
  ASSERT_TRUE(errors.ok());
  const size_t all = deal.options.size() - 2, none = all + 1;
  for (int unit = 0; unit < 4; ++unit) {
    EXPECT_EQ((*errors)[0][unit], 0.0);
    EXPECT_EQ((*errors)[all][unit], 0.0);
    EXPECT_GT((*errors)[1][unit], 0.0);  // a window
    // From the smallest share of pages to the largest.
    EXPECT_GT((*errors)[3][unit], (*errors)[all - 2][unit]);
    // Reading nothing gives zeros: the distance is the full output's own norm.
    EXPECT_GT((*errors)[none][unit], (*errors)[1][unit] * 0.1);
  }
  std::vector<double> lost = {0.5, 0.0, 0.25, 0.25};
  add_losses(deal, *errors, lost);
  for (int unit = 0; unit < 4; ++unit) {
    EXPECT_NEAR(deal.loss[2][unit], lost[unit], 1e-12);  // the fallback itself
    EXPECT_NEAR(deal.loss[1][unit] * (*errors)[2][unit], lost[unit] * (*errors)[1][unit], 1e-9);
  }
}

}  // namespace
}  // namespace polar::study
