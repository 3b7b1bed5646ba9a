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
          {"neurons", quality.neuron_share},
          {"needles", {quality.needles, quality.dense_needles, quality.sparse_needles}}};
}

void read_quality(const ordered_json& json, sparsity::Quality& quality) {
  quality.perplexity_ratio = json["ratio"];
  quality.kl = json["kl"];
  quality.agreement = json["agreement"];
  quality.effective_density = json["density"];
  quality.neuron_share = json.value("neurons", 1.0);
  quality.needles = json["needles"][0];
  quality.dense_needles = json["needles"][1];
  quality.sparse_needles = json["needles"][2];
}

/// FNV-1a over words of 32 bits.
class Hash {
 public:
  template <typename T>
  void add(T word) {
    value_ = (value_ ^ std::bit_cast<uint32_t>(word)) * 0x100000001b3ull;
  }
  std::string text() const { return std::to_string(value_); }

 private:
  uint64_t value_ = 0xcbf29ce484222325ull;
};

/// Tells routers apart in the state's keys: what old ones measured says nothing of new ones.
std::string of_routers(const std::shared_ptr<const sparsity::Routers>& routers) {
  if (routers == nullptr) return "";
  Hash hash;
  for (const sparsity::HeadRouter& head : routers->heads)
    for (const float value : head.weight) hash.add(value);
  return ", routers " + hash.text();
}

/// The same for routers of neurons.
std::string of_neurons(const sparsity::Routers& routers) {
  Hash hash;
  for (const sparsity::MlpRouter& mlp : routers.mlps) {
    hash.add(mlp.unit);
    for (const int32_t count : mlp.neurons) hash.add(count);
  }
  return ", neurons " + hash.text();
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

  /// Asks who chooses neurons.
  Status prepare_neurons() {
    if (!options_.neurons) return {};
    Windows windows;
    windows.context = options_.context;
    for (const Passage& passage : slices_.importance) {
      windows.tokens.insert(windows.tokens.end(), passage.tokens.begin(), passage.tokens.end());
      ++windows.count;
    }
    POLAR_ASSIGN(neurons_, options_.neurons(windows));
    return {};
  }

  Status measure_importance() {
    POLAR_ASSIGN(result_.text_importance, importance("text", slices_.importance));
    std::vector<Passage> asked;
    for (const Needle& needle : slices_.needles) asked.push_back(needle.passage);
    POLAR_ASSIGN(result_.retrieval_importance, importance("retrieval", asked));
    ranked_ = rank_units(result_.text_importance, result_.retrieval_importance);
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

  /// The families, each searched for the fewest bytes inside the budget; the best of them becomes
  /// an operating point.
  Status choose(double max_loss) {
    POLAR_ASSIGN(const Neurons neurons, choose_neurons(max_loss));
    const double budget = max_loss * kSafety - neurons.loss;
    std::optional<Trial> best;
    for (const Family& family : families()) {
      const double limit = best ? best->effective_density : 1.0;
      POLAR_ASSIGN(std::optional<Trial> trial, search(family, budget, limit));
      if (trial && (!best || trial->effective_density < best->effective_density))
        best = std::move(trial);
    }
    OperatingPoint point =
        sparsity::dense_profile(weights_.config.layers, weights_.config.kv_heads).points[0];
    if (best) point = best->point;
    const std::string trial = point.name;
    point.name = point_name(max_loss);
    point.recall = neurons.recall;
    POLAR_RETURN_IF_ERROR(measure_together(point, trial, max_loss));
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
          [&] { return options_.curve_planner(values, ranked_); }, point));
      result_.curve.push_back(std::move(point));
    }
    return {};
  }

  Calibration finish(const std::string& fingerprint) {
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

  /// In the order of how often they win: a family that comes later only looks below the best so
  /// far.
  std::vector<Family> families() const {
    std::vector<Family> families;
    for (const Tiers& tiers : {kHalves, kTenthFull, kFullAboveWindows, kAboveWindows, kEqualPages})
      families.push_back(pages_family(ranked_, tiers));
    for (const int recent : {8, 32}) {
      if (recent * backend::kPageTokens * 2 <= options_.context)
        families.push_back(static_family(ranked_, recent));
    }
    return families;
  }

  double expected(const OperatingPoint& point) const {
    backend::KvView kv;
    kv.dtype = options_.kv_dtype;
    kv.head_dim = weights_.config.head_dim;
    kv.page_score = options_.page_score;
    return expected_density(point, prompt(), options_.context, kv.bytes({0, 1}) / kv.bytes({1, 0}));
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

  bool inside(const Trial& trial, double budget) const {
    return trial.loss <= budget && trial.needles >= result_.dense_needles &&
           trial.effective_density <= 1;  // mean keys can cost more than the pages they save
  }

  /// A point's neurons, and what they alone lose.
  struct Neurons {
    double recall = 0, loss = 0;
  };

  /// The least recall that alone stays inside its share of the budget, by bisection: loss falls as
  /// recall grows.
  Result<Neurons> choose_neurons(double max_loss) {
    Neurons chosen;
    if (neurons_ == nullptr) return chosen;
    OperatingPoint point =
        sparsity::dense_profile(weights_.config.layers, weights_.config.kv_heads).points[0];
    const std::vector<double>& recalls = neurons_->recalls;
    for (int low = 0, high = static_cast<int>(recalls.size()) - 1; low <= high;) {
      const int middle = (low + high) / 2;
      point.recall = recalls[middle];
      const std::string name = "neurons" + of_recall(point);
      CurvePoint measured;
      POLAR_RETURN_IF_ERROR(measure_once(
          "trial " + name, name, [&] { return planner_of(point); }, measured));
      if (measured.loss <= max_loss * kNeuronShare && measured.needles >= result_.dense_needles) {
        chosen = {point.recall, std::max(0.0, measured.loss)};
        high = middle - 1;
      } else {
        low = middle + 1;
      }
    }
    return chosen;
  }

  std::string of_recall(const OperatingPoint& point) const {
    if (point.recall == 0) return "";
    return ", recall " + std::to_string(point.recall) + of_neurons(*neurons_);
  }

  /// Measures heads and neurons together. Losses do not quite add up: where both are too much, more
  /// neurons are computed.
  Status measure_together(OperatingPoint& point, const std::string& trial, double max_loss) {
    for (;;) {
      POLAR_ASSIGN(point.quality, final_quality(point, trial));
      point.quality.max_loss = max_loss;
      const bool fits = point.quality.perplexity_ratio - 1 <= max_loss * kSafety &&
                        point.quality.sparse_needles >= point.quality.dense_needles;
      if (fits || point.recall == 0) return {};
      const auto next =
          std::upper_bound(neurons_->recalls.begin(), neurons_->recalls.end(), point.recall);
      point.recall = next == neurons_->recalls.end() ? 0 : *next;
    }
  }

  /// Bisection over a family's knob, among its points that are expected to read less than `limit`:
  /// loss falls as bytes grow. Nothing: none of them stays inside the budget.
  Result<std::optional<Trial>> search(const Family& family, double budget, double limit) {
    int high = static_cast<int>(family.points.size()) - 1;
    while (high >= 0 && expected(family.points[high]) >= limit) --high;
    if (high < 0) return std::optional<Trial>();
    POLAR_ASSIGN(Trial best, measure(family, high));
    if (!inside(best, budget)) return std::optional<Trial>();
    for (int low = 0; low < high;) {
      const int middle = (low + high) / 2;
      POLAR_ASSIGN(Trial trial, measure(family, middle));
      if (inside(trial, budget)) {
        high = middle;
        best = std::move(trial);
      } else {
        low = middle + 1;
      }
    }
    return std::optional<Trial>(std::move(best));
  }

  /// Loss, bytes and retrieval of a planner on the held-out slice, or what is stored of it. Trial
  /// and CurvePoint have the same three numbers.
  template <typename Point, typename MakePlanner>
  Status measure_once(const std::string& key, const std::string& stage, const MakePlanner& make,
                      Point& point) {
    if (const ordered_json* stored = state_.find(key)) {
      point.loss = (*stored)["loss"];
      point.effective_density = (*stored)["density"];
      point.needles = (*stored)["needles"];
      return {};
    }
    POLAR_ASSIGN(auto planner, make());
    EvaluateOptions evaluation = evaluate_options(stage);
    evaluation.known_dense_perplexity = result_.dense_perplexity;
    POLAR_ASSIGN(const Evaluation measured,
                 evaluate(device_, weights_, slices_.held_out, planner.get(), evaluation));
    point.loss = measured.ratio() - 1;
    point.effective_density = measured.effective_density();
    point.needles = sum_up(retrieval_->ask(planner.get())).sparse_correct;
    return state_.put(
        key,
        {{"loss", point.loss}, {"density", point.effective_density}, {"needles", point.needles}});
  }

  Result<Trial> measure(const Family& family, int knob) {
    Trial trial;
    trial.family = family.name;
    trial.point = family.points[knob];
    const std::string& name = trial.point.name;
    POLAR_RETURN_IF_ERROR(measure_once(
        "trial " + name, name, [&] { return planner_of(trial.point); }, trial));
    const bool known = std::any_of(result_.trials.begin(), result_.trials.end(),
                                   [&](const Trial& other) { return other.point.name == name; });
    if (!known) result_.trials.push_back(trial);
    return trial;
  }

  /// The chosen point beside dense, row by row.
  Result<sparsity::Quality> final_quality(const OperatingPoint& point, const std::string& trial) {
    const std::string key = "beside dense: " + trial + of_recall(point);
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
    quality.neuron_share = measured.neuron_share;
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
    profile.routers = neurons_;
    return point_planner(device_, profile, 0);
  }

  /// The fallback while units are ranked: a window that all families can afford.
  static constexpr int kImportanceRecent = 8;
  /// A point must do better on the held-out slice than the budget says, for texts that calibration
  /// never saw.
  static constexpr double kSafety = 0.8;
  /// Of the budget, what neurons alone may lose: they pay at small batches only, pages at all.
  static constexpr double kNeuronShare = 0.125;

  backend::Device& device_;
  const model::Weights& weights_;
  const CalibrateOptions& options_;
  CalibrationState& state_;
  Slices slices_;
  std::unique_ptr<Retrieval> retrieval_;  // the held-out prompts
  std::vector<int> ranked_;
  std::shared_ptr<const sparsity::Routers> neurons_;  // null: none are chosen
  Calibration result_;
};

ordered_json identity_of(const std::string& fingerprint, const CalibrateOptions& options,
                         size_t text_bytes) {
  return {{"model", fingerprint},
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
  POLAR_RETURN_IF_ERROR(calibrator.prepare_neurons());
  POLAR_RETURN_IF_ERROR(calibrator.measure_importance());
  POLAR_RETURN_IF_ERROR(calibrator.measure_dense());
  calibrator.begin_profile();
  std::vector<double> losses = options.max_losses;
  std::sort(losses.begin(), losses.end());
  for (const double loss : losses) POLAR_RETURN_IF_ERROR(calibrator.choose(loss));
  POLAR_RETURN_IF_ERROR(calibrator.measure_curve());
  Calibration calibration = calibrator.finish(fingerprint);
  POLAR_RETURN_IF_ERROR(sparsity::write_profile(directory, calibration.profile));
  return calibration;
}

}  // namespace polar::study
