#include "study/calibrate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>

#include "study/calibration_state.h"

namespace polar::study {

using nlohmann::ordered_json;
using sparsity::OperatingPoint;
using sparsity::Profile;

namespace {

/// What is kept of a chosen point's measurement.
ordered_json quality_json(const sparsity::Quality& quality) {
  return {{"ratio", quality.perplexity_ratio},
          {"kl", quality.kl},
          {"agreement", quality.agreement},
          {"density", quality.effective_density},
          {"needles", {quality.needles, quality.dense_needles, quality.sparse_needles}}};
}

void read_quality(const ordered_json& json, sparsity::Quality& quality) {
  quality.perplexity_ratio = json["ratio"];
  quality.kl = json["kl"];
  quality.agreement = json["agreement"];
  quality.effective_density = json["density"];
  quality.needles = json["needles"][0];
  quality.dense_needles = json["needles"][1];
  quality.sparse_needles = json["needles"][2];
}

/// Tells routers apart in the state's keys: what old ones measured says nothing of new ones.
std::string of_routers(const std::shared_ptr<const sparsity::Routers>& routers) {
  if (routers == nullptr) return "";
  uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a over the weights' bits
  for (const sparsity::HeadRouter& head : routers->heads) {
    for (const float value : head.weight)
      hash = (hash ^ std::bit_cast<uint32_t>(value)) * 0x100000001b3ull;
  }
  return ", routers " + std::to_string(hash);
}

/// Windows are dealt over the whole text: the even ones for importance, the odd ones held out.
struct Slices {
  std::vector<Passage> importance;
  Windows held_out;
  std::vector<Needle> needles;  // that rank the units
};

class Calibrator {
 public:
  Calibrator(backend::Device& device, const model::Weights& weights,
             const CalibrateOptions& options, CalibrationState& state)
      : device_(device), weights_(weights), options_(options), state_(state) {}

  Status slice(const std::vector<std::string>& documents, const Encode& encode, int leading) {
    const auto with_leading = [&](const std::string& document) { return encode(document, true); };
    const int wanted = options_.importance_windows + options_.held_out_windows;
    POLAR_ASSIGN(const Windows all,
                 make_windows(options_.text_name, documents, with_leading, options_.context, 0));
    if (all.count < wanted) {
      return bad_input(
          options_.text_name, "text",
          std::to_string(all.count) + " windows of " + std::to_string(options_.context) + " tokens",
          "at least " + std::to_string(wanted));
    }
    slices_.held_out.context = options_.context;
    for (int i = 0; i < wanted; ++i) {
      const int window = static_cast<int>(static_cast<int64_t>(i) * all.count / wanted);
      const auto tokens = all.at(window);
      // Interleaved, so that both slices come from all over the text.
      const bool importance = i * options_.importance_windows / wanted !=
                              (i + 1) * options_.importance_windows / wanted;
      if (importance) {
        slices_.importance.push_back(make_passage(tokens, prompt(), kScoredStride));
      } else {
        slices_.held_out.tokens.insert(slices_.held_out.tokens.end(), tokens.begin(), tokens.end());
        ++slices_.held_out.count;
      }
    }
    const int ranking = options_.needles / 3;
    std::vector<int32_t> haystack;
    for (const int32_t token : all.tokens) {
      if (token != leading) haystack.push_back(token);
    }
    POLAR_ASSIGN(slices_.needles,
                 make_needles(options_.text_name, haystack, encode, leading, options_.context,
                              ranking, 0, kCalibrationWordings, options_.seed));
    POLAR_ASSIGN(auto held_out_needles, make_needles(options_.text_name, haystack, encode, leading,
                                                     options_.context, options_.needles - ranking,
                                                     0, kCalibrationWordings, options_.seed + 1));
    POLAR_ASSIGN(retrieval_, Retrieval::create(device_, weights_, std::move(held_out_needles),
                                               options_.kv_dtype, options_.page_score));
    return {};
  }

  Status measure_importance() {
    POLAR_ASSIGN(result_.text_importance, importance("text", slices_.importance));
    std::vector<Passage> asked;
    for (const Needle& needle : slices_.needles) asked.push_back(needle.passage);
    POLAR_ASSIGN(result_.retrieval_importance, importance("retrieval", asked));
    ranking_ = {rank_by_share(result_.text_importance, result_.retrieval_importance),
                weights_.config.kv_heads};
    SolverOptions solver;
    solver.ranking = ranking_;
    solver.shapes =
        first_shapes(options_.context, weights_.config.kv_heads, options_.routers != nullptr);
    solver.context = options_.context;
    solver.trials = options_.trials;
    solver.expected = [this](const OperatingPoint& point) { return expected(point); };
    solver.measure = [this](Trial& trial) {
      const bool routed = trial.point.limits.routed > 0;
      const std::string& name = trial.point.name;
      return measure_once(
          "trial " + name + of_routers(routed ? options_.routers : nullptr), name,
          [&] { return planner_of(trial.point); }, trial);
    };
    solver_ = std::make_unique<Solver>(std::move(solver));
    return {};
  }

  Status measure_dense() {
    if (const ordered_json* stored = state_.find("dense")) {
      result_.dense_perplexity = (*stored)["perplexity"];
    } else {
      POLAR_ASSIGN(const Evaluation dense, evaluate(device_, weights_, slices_.held_out, nullptr,
                                                    evaluate_options("dense")));
      result_.dense_perplexity = dense.dense_perplexity;
      POLAR_RETURN_IF_ERROR(state_.put("dense", {{"perplexity", result_.dense_perplexity}}));
    }
    const NeedleResult dense = sum_up(retrieval_->ask(nullptr));
    result_.dense_needles = dense.dense_correct;
    result_.needle_count = dense.count;
    return {};
  }

  Status search(double max_loss) {
    const auto cost = [this, max_loss](const Trial& trial) { return cost_of(trial, max_loss); };
    POLAR_ASSIGN(const auto found, solver_->solve(cost));
    (void)found;  // chosen when all budgets are searched
    return {};
  }

  /// The fewest bytes inside the budget, of all that was measured, become an operating point.
  Status choose(double max_loss) {
    const auto cost = [this, max_loss](const Trial& trial) { return cost_of(trial, max_loss); };
    const std::optional<Trial> best = solver_->best_of(cost);
    OperatingPoint point =
        sparsity::dense_profile(weights_.config.layers, weights_.config.kv_heads).points[0];
    if (best) point = best->point;
    const std::string trial = point.name;
    point.name = point_name(max_loss);
    POLAR_ASSIGN(point.quality, final_quality(point, trial));
    point.quality.max_loss = max_loss;
    if (best) {
      POLAR_ASSIGN(auto rows, solver_->compare(cost, expected(best->point)));
      result_.comparisons.push_back({point.name, std::move(rows)});
    }
    if (point.limits.routed > 0) result_.profile.routers = options_.routers;
    result_.profile.points.push_back(std::move(point));
    return {};
  }

  Status measure_curve() {
    for (const CurveSetting& setting : options_.curve) {
      CurvePoint point;
      point.policy = setting.policy;
      point.setting = setting.setting;
      Policy values = setting.values;
      values.page_score = options_.page_score;  // as the retrieval prompts' cache is kept
      const std::string name = setting.policy + ", " + setting.setting;
      POLAR_RETURN_IF_ERROR(measure_once(
          "curve " + name + of_routers(setting.values.routers), name,
          [&] {
            return options_.curve_planner(
                values, rank_units(result_.text_importance, result_.retrieval_importance));
          },
          point));
      result_.curve.push_back(std::move(point));
    }
    return {};
  }

  Calibration finish(const std::string& fingerprint) {
    result_.trials = solver_->trials();
    result_.profile.fingerprint = fingerprint;
    result_.profile.page_score = options_.page_score;
    result_.profile.context_min = prompt();
    result_.profile.context_max = options_.context;
    result_.profile.text_importance = result_.text_importance;
    result_.profile.retrieval_importance = result_.retrieval_importance;
    return std::move(result_);
  }

  void begin_profile() {
    result_.profile = sparsity::dense_profile(weights_.config.layers, weights_.config.kv_heads);
  }

 private:
  static constexpr int kScoredStride = 4;  // every fourth row says enough of a unit

  int prompt() const { return options_.prompt >= 0 ? options_.prompt : options_.context / 4; }

  static std::string point_name(double max_loss) {
    std::string name = std::to_string(max_loss * 100);
    name.erase(name.find_last_not_of('0') + 1);
    if (name.back() == '.') name.pop_back();
    return name + "%";
  }

  EvaluateOptions evaluate_options(const std::string& stage) const {
    EvaluateOptions evaluation;
    evaluation.prompt = prompt();
    evaluation.kv_dtype = options_.kv_dtype;
    evaluation.progress = [this, stage](int done, int windows) {
      if (options_.progress) options_.progress(stage, done, windows);
    };
    return evaluation;
  }

  double expected(const OperatingPoint& point) const {
    backend::KvView kv;
    kv.dtype = options_.kv_dtype;
    kv.head_dim = weights_.config.head_dim;
    kv.page_score = options_.page_score;
    return expected_density(point, prompt(), options_.context, kv.bytes({0, 1}) / kv.bytes({1, 0}),
                            weights_.config.kv_heads);
  }

  Result<std::vector<double>> importance(const std::string& kind,
                                         const std::vector<Passage>& passages) {
    if (passages.empty()) return std::vector<double>();
    std::vector<double> sum(static_cast<size_t>(weights_.config.layers) * weights_.config.kv_heads,
                            0.0);
    for (size_t i = 0; i < passages.size(); ++i) {
      const std::string key = "importance " + kind + " " + std::to_string(i);
      std::vector<double> kl;
      if (const ordered_json* stored = state_.find(key)) {
        kl = stored->get<std::vector<double>>();
      } else {
        ImportanceOptions importance;
        importance.fallback.kind = PolicyKind::kWindow;
        importance.fallback.recent = kImportanceRecent;
        importance.kv_dtype = options_.kv_dtype;
        importance.progress = [&](int done, int units) {
          if (options_.progress) options_.progress("units left out, " + key, done, units);
        };
        POLAR_ASSIGN(kl, leave_one_out(device_, weights_, {&passages[i], 1}, importance));
        POLAR_RETURN_IF_ERROR(state_.put(key, kl));
      }
      for (size_t unit = 0; unit < sum.size(); ++unit)
        sum[unit] += kl[unit] / static_cast<double>(passages.size());
    }
    return sum;
  }

  /// What a trial uses up of a budget, the largest of three shares: of the loss of perplexity, of
  /// what answers to the held-out retrieval prompts may lose, and, over 1, of answers that are
  /// gone.
  double cost_of(const Trial& trial, double max_loss) const {
    double cost = std::max(trial.loss / (max_loss * kSafety), trial.answer_loss / kAnswerLoss);
    const int gone = result_.dense_needles - trial.needles - result_.needle_count / 40;
    if (gone > 0) cost = std::max(cost, 1 + static_cast<double>(gone) / result_.dense_needles);
    return cost;
  }

  /// Nats that the answers lose, mean over the prompts by how likely the answer is dense: a prompt
  /// that dense does not answer says nothing.
  static double answer_loss(std::span<const NeedleAnswers> answers) {
    double lost = 0, weights = 0;
    for (const NeedleAnswers& answer : answers) {
      const double weight = std::exp(answer.dense.log_probability);
      lost += weight * (answer.dense.log_probability - answer.sparse.log_probability);
      weights += weight;
    }
    // Not one answer's worth of probability: nothing is known, nothing is decided.
    return weights >= 1 ? lost / weights : 0;
  }

  /// Loss, bytes and retrieval of a planner on the held-out slice, or what is stored of it. Trial
  /// and CurvePoint have the same numbers.
  template <typename Point, typename MakePlanner>
  Status measure_once(const std::string& key, const std::string& stage, const MakePlanner& make,
                      Point& point) {
    if (const ordered_json* stored = state_.find(key)) {
      point.loss = (*stored)["loss"];
      point.effective_density = (*stored)["density"];
      point.needles = (*stored)["needles"];
      point.answer_loss = (*stored)["answer_loss"];
      return {};
    }
    POLAR_ASSIGN(auto planner, make());
    EvaluateOptions evaluation = evaluate_options(stage);
    evaluation.known_dense_perplexity = result_.dense_perplexity;
    POLAR_ASSIGN(const Evaluation measured,
                 evaluate(device_, weights_, slices_.held_out, planner.get(), evaluation));
    point.loss = measured.ratio() - 1;
    point.effective_density = measured.effective_density();
    const std::vector<NeedleAnswers> answers = retrieval_->ask(planner.get());
    point.needles = sum_up(answers).sparse_correct;
    point.answer_loss = answer_loss(answers);
    return state_.put(key, {{"loss", point.loss},
                            {"density", point.effective_density},
                            {"needles", point.needles},
                            {"answer_loss", point.answer_loss}});
  }

  /// The chosen point beside dense, row by row.
  Result<sparsity::Quality> final_quality(const OperatingPoint& point, const std::string& trial) {
    const std::string key =
        "beside dense: " + trial + of_routers(point.limits.routed > 0 ? options_.routers : nullptr);
    sparsity::Quality quality;
    quality.text = options_.text_name + ", " + std::to_string(slices_.held_out.count) +
                   " held-out windows of " + std::to_string(options_.context);
    if (const ordered_json* stored = state_.find(key)) {
      read_quality(*stored, quality);
      return quality;
    }
    POLAR_ASSIGN(auto planner, planner_of(point));
    POLAR_ASSIGN(const Evaluation measured,
                 evaluate(device_, weights_, slices_.held_out, planner.get(),
                          evaluate_options(point.name + " beside dense")));
    const NeedleResult needles = sum_up(retrieval_->ask(planner.get()));
    quality.perplexity_ratio = measured.ratio();
    quality.kl = measured.kl;
    quality.agreement = measured.agreement;
    quality.effective_density = measured.effective_density();
    quality.needles = needles.count;
    quality.dense_needles = needles.dense_correct;
    quality.sparse_needles = needles.sparse_correct;
    POLAR_RETURN_IF_ERROR(state_.put(key, quality_json(quality)));
    return quality;
  }

  Result<std::unique_ptr<model::Planner>> planner_of(const OperatingPoint& point) {
    Profile profile = sparsity::dense_profile(weights_.config.layers, weights_.config.kv_heads);
    profile.page_score = options_.page_score;
    profile.points = {point};
    if (point.limits.routed > 0) profile.routers = options_.routers;
    return point_planner(device_, profile, 0);
  }

  /// The fallback while units are ranked: a window that all families can afford.
  static constexpr int kImportanceRecent = 8;
  /// A point must do better on the held-out slice than the budget says, for texts that calibration
  /// never saw.
  static constexpr double kSafety = 0.8;
  /// Retrieval is not for sale: whatever the budget, the right answers' probability (a geometric
  /// mean) may fall by a tenth.
  static constexpr double kAnswerLoss = 0.1;

  backend::Device& device_;
  const model::Weights& weights_;
  const CalibrateOptions& options_;
  CalibrationState& state_;
  Slices slices_;
  std::unique_ptr<Retrieval> retrieval_;  // the held-out prompts
  Ranking ranking_;
  std::unique_ptr<Solver> solver_;
  Calibration result_;
};

ordered_json identity_of(const std::string& fingerprint, const CalibrateOptions& options,
                         size_t text_bytes) {
  return {{"search", 2},  // what the keys and values of the state mean
          {"model", fingerprint},
          {"text", options.text_name},
          {"text_bytes", text_bytes},
          {"context", options.context},
          {"prompt", options.prompt},
          {"importance_windows", options.importance_windows},
          {"held_out_windows", options.held_out_windows},
          {"needles", options.needles},
          {"page_score", backend::page_score_name(options.page_score)},
          {"kv_dtype", std::string(dtype_info(options.kv_dtype).name)},
          {"seed", options.seed}};
}

}  // namespace

Result<Calibration> calibrate(backend::Device& device, const model::Weights& weights,
                              const std::string& fingerprint,
                              const std::vector<std::string>& documents, const Encode& encode,
                              int leading_token, const std::string& directory,
                              const CalibrateOptions& options) {
  size_t text_bytes = 0;
  for (const std::string& document : documents) text_bytes += document.size();
  POLAR_ASSIGN(CalibrationState state,
               CalibrationState::open(directory, identity_of(fingerprint, options, text_bytes)));
  Calibrator calibrator(device, weights, options, state);
  POLAR_RETURN_IF_ERROR(calibrator.slice(documents, encode, leading_token));
  POLAR_RETURN_IF_ERROR(calibrator.measure_importance());
  POLAR_RETURN_IF_ERROR(calibrator.measure_dense());
  calibrator.begin_profile();
  std::vector<double> losses = options.max_losses;
  std::sort(losses.begin(), losses.end());
  for (const double loss : losses) POLAR_RETURN_IF_ERROR(calibrator.search(loss));
  for (const double loss : losses) POLAR_RETURN_IF_ERROR(calibrator.choose(loss));
  POLAR_RETURN_IF_ERROR(calibrator.measure_curve());
  Calibration calibration = calibrator.finish(fingerprint);
  if (calibration.profile.routers != nullptr)
    POLAR_RETURN_IF_ERROR(sparsity::write_routers(directory, *calibration.profile.routers));
  POLAR_RETURN_IF_ERROR(sparsity::write_profile(directory, calibration.profile));
  return calibration;
}

}  // namespace polar::study
