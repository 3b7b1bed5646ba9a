#include "study/calibrate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "study/calibration_slices.h"
#include "study/calibration_state.h"
#include "study/unit_measurer.h"

namespace polar::study {

using nlohmann::ordered_json;
using sparsity::OperatingPoint;
using sparsity::Profile;

namespace {

class Calibrator {
 public:
  Calibrator(backend::Device& device, const model::Weights& weights,
             const CalibrateOptions& options, CalibrationState& state)
      : device_(device), weights_(weights), options_(options), state_(state) {}

  Status slice(const std::vector<std::string>& documents, const Encode& encode, int leading) {
    POLAR_ASSIGN(slices_, make_slices(documents, encode, leading, options_));
    POLAR_ASSIGN(retrieval_,
                 Retrieval::create(device_, weights_, std::move(slices_.held_out_needles),
                                   options_.kv_dtype, {1, options_.page_score, true}));
    return {};
  }

  /// Asks who chooses neurons, and puts them beside who chooses heads.
  Status prepare_routers() {
    routers_ = options_.routers;
    if (!options_.neurons) return {};
    Windows windows;
    windows.context = options_.context;
    for (const Passage& passage : slices_.importance) {
      windows.tokens.insert(windows.tokens.end(), passage.tokens.begin(), passage.tokens.end());
      ++windows.count;
    }
    POLAR_ASSIGN(sparsity::Routers routers, options_.neurons(windows));
    if (options_.routers != nullptr) routers.heads = options_.routers->heads;
    routers_ = std::make_shared<const sparsity::Routers>(std::move(routers));
    return {};
  }

  Status measure_importance() {
    const UnitMeasurer units(device_, weights_, options_, state_);
    Policy window;  // while units are ranked: what all shapes can afford
    window.recent = kImportanceRecent;
    std::vector<Passage> asked;
    for (const Needle& needle : slices_.needles) asked.push_back(needle.passage);
    POLAR_ASSIGN(result_.text_importance, units.left_out("text", slices_.importance, window));
    POLAR_ASSIGN(result_.retrieval_importance, units.left_out("retrieval", asked, window));
    const std::vector<double>& text = result_.text_importance;
    const std::vector<double>& retrieval = result_.retrieval_importance;
    ranking_.by_place = rank_units(text, retrieval);
    // Questions that dense cannot answer still say which units look far, but not how much it is
    // worth.
    ranking_.units = rank_by_share(text, answers_ ? retrieval : std::vector<double>());
    if (ranking_.by_place == ranking_.units) ranking_.by_place.clear();
    ranking_.kv_heads = weights_.config.kv_heads;
    ranking_.deal = unit_options(options_.prompt_tokens(), options_.context, index_share());
    POLAR_RETURN_IF_ERROR(units.add_losses("text", slices_.whole, ranking_.deal));
    return answers_ ? units.add_losses("retrieval", asked, ranking_.deal) : Status{};
  }

  Status prepare_solver() {
    SolverOptions solver;
    solver.ranking = ranking_;
    for (const Shape& shape : first_shapes(options_.context, ranking_,
                                           routers_ != nullptr && routers_->routes_heads())) {
      if (wanted(shape)) solver.shapes.push_back(shape);
    }
    solver.context = options_.context;
    solver.trials = options_.trials;
    solver.parts = kParts;
    solver.expected = [this](const OperatingPoint& point) { return expected(point); };
    solver.measure_part = [this](Trial& trial) { return measure_trial(trial, false); };
    solver.measure_rest = [this](Trial& trial) { return measure_trial(trial, true); };
    solver_ = std::make_unique<Solver>(std::move(solver));
    return {};
  }

  Status measure_dense() {
    POLAR_ASSIGN(dense_part_, measure_windows("dense, part", "dense", nullptr, slices_.part));
    POLAR_ASSIGN(dense_whole_, measure_windows("dense, rest", "dense", nullptr, slices_.rest));
    dense_whole_.add(dense_part_);
    result_.dense_perplexity = std::exp(dense_whole_.mean_loss());
    const std::vector<NeedleAnswers> answers = retrieval_->ask(nullptr);
    const NeedleResult dense = sum_up(answers);
    result_.dense_needles = dense.dense_correct;
    result_.needle_count = dense.count;
    double known = 0;
    for (const NeedleAnswers& answer : answers) known += std::exp(answer.dense.log_probability);
    answers_ = known >= 1;
    return {};
  }

  Status search(double max_loss) {
    POLAR_RETURN_IF_ERROR(choose_neurons(max_loss));
    POLAR_ASSIGN(const auto found, solver_->solve(cost(max_loss)));
    (void)found;  // chosen when all budgets are searched
    return {};
  }

  /// The fewest bytes inside the budget, of all that was measured, become an operating point.
  Status choose(double max_loss) {
    const std::optional<Trial> best = solver_->best_of(cost(max_loss));
    OperatingPoint point = best ? best->point : dense_point();
    const std::string trial = point.name;
    point.name = point_name(max_loss);
    point.recall = neurons_of(max_loss).recall;
    POLAR_RETURN_IF_ERROR(measure_together(point, trial, max_loss));
    if (best) {
      POLAR_ASSIGN(auto rows,
                   solver_->compare(cost(max_loss), expected(best->point), options_.compare));
      result_.comparisons.push_back({point.name, std::move(rows)});
    }
    if (point.limits.routed > 0 || point.recall > 0) result_.profile.routers = routers_;
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
          "curve " + name + (setting.values.routers ? heads_hash(*setting.values.routers) : ""),
          name,
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
    for (const Trial& trial : solver_->trials()) {
      if (trial.whole) result_.trials.push_back(trial);
    }
    result_.profile.fingerprint = fingerprint;
    result_.profile.page_score = options_.page_score;
    result_.profile.context_min = options_.prompt_tokens();
    result_.profile.context_max = options_.context;
    result_.profile.text_importance = result_.text_importance;
    result_.profile.retrieval_importance = result_.retrieval_importance;
    return std::move(result_);
  }

  void begin_profile() {
    result_.profile = sparsity::dense_profile(weights_.config.layers, weights_.config.kv_heads);
  }

 private:
  /// What some windows of the held-out slice lose and read.
  struct Measured {
    double loss = 0, tokens = 0;  // nats, summed over tokens
    double kv_bytes = 0, dense_kv_bytes = 0;

    void add(const Measured& other) {
      loss += other.loss;
      tokens += other.tokens;
      kv_bytes += other.kv_bytes;
      dense_kv_bytes += other.dense_kv_bytes;
    }
    double mean_loss() const { return loss / tokens; }
    double density() const { return dense_kv_bytes > 0 ? kv_bytes / dense_kv_bytes : 1.0; }
    /// Perplexity ratio - 1.
    double loss_beside(const Measured& dense) const {
      return std::exp(mean_loss() - dense.mean_loss()) - 1;
    }
  };
  using MakePlanner = std::function<Result<std::unique_ptr<model::Planner>>()>;

  bool wanted(const Shape& shape) const {
    const std::vector<std::string>& policies = options_.policies;
    return policies.empty() ||
           std::find(policies.begin(), policies.end(), shape.policy()) != policies.end();
  }

  static std::string point_name(double max_loss) {
    std::string name = std::to_string(max_loss * 100);
    name.erase(name.find_last_not_of('0') + 1);
    if (name.back() == '.') name.pop_back();
    return name + "%";
  }

  EvaluateOptions evaluate_options(const std::string& stage) const {
    EvaluateOptions evaluation;
    evaluation.prompt = options_.prompt_tokens();
    evaluation.kv_dtype = options_.kv_dtype;
    evaluation.progress = [this, stage](int done, int windows) {
      if (options_.progress) options_.progress(stage, done, windows);
    };
    return evaluation;
  }

  /// Bytes of a page's index over those of the page.
  double index_share() const {
    backend::KvView kv;
    kv.dtype = options_.kv_dtype;
    kv.head_dim = weights_.config.head_dim;
    kv.page_score = options_.page_score;
    return kv.bytes({0, 1}) / kv.bytes({1});
  }

  double expected(const OperatingPoint& point) const {
    return expected_density(point, options_.prompt_tokens(), options_.context, index_share(),
                            weights_.config.kv_heads);
  }

  /// A point's neurons, and what they alone lose.
  struct Neurons {
    double recall = 0, loss = 0;
  };

  Neurons neurons_of(double max_loss) const {
    const auto found = neurons_.find(max_loss);
    return found == neurons_.end() ? Neurons{} : found->second;
  }

  /// The least recall that alone stays inside its share of the budget on the part of the slice, by
  /// bisection: loss falls as recall grows.
  Status choose_neurons(double max_loss) {
    if (routers_ == nullptr || !routers_->routes_neurons()) return {};
    OperatingPoint point = dense_point();
    const std::vector<double>& recalls = routers_->recalls;
    for (int low = 0, high = static_cast<int>(recalls.size()) - 1; low <= high;) {
      const int middle = (low + high) / 2;
      point.recall = recalls[middle];
      const std::string name = "neurons" + of_recall(point);
      const MakePlanner make = [&] { return planner_of(point); };
      POLAR_ASSIGN(const Measured measured,
                   measure_windows("trial " + name + ", part", name, make, slices_.part));
      CurvePoint asked;
      POLAR_RETURN_IF_ERROR(ask("trial " + name + ", answers", make, asked));
      const double loss = measured.loss_beside(dense_part_);
      if (loss <= max_loss * kNeuronShare && missing(asked.needles) <= 0) {
        neurons_[max_loss] = {point.recall, std::max(0.0, loss)};
        high = middle - 1;
      } else {
        low = middle + 1;
      }
    }
    return {};
  }

  std::string of_recall(const OperatingPoint& point) const {
    if (point.recall == 0) return "";
    return ", recall " + std::to_string(point.recall) + neurons_hash(*routers_);
  }

  std::string of_routed(const OperatingPoint& point) const {
    return point.limits.routed > 0 ? heads_hash(*routers_) : "";
  }

  /// Measures heads and neurons together. Losses do not quite add up: where both are too much, more
  /// neurons are computed.
  Status measure_together(OperatingPoint& point, const std::string& trial, double max_loss) {
    for (;;) {
      POLAR_ASSIGN(point.quality, final_quality(point, trial));
      point.quality.max_loss = max_loss;
      const bool fits = point.quality.perplexity_ratio - 1 <= max_loss * kSafety &&
                        missing(point.quality.sparse_needles) <= 0;
      if (fits || point.recall == 0) return {};
      const std::vector<double>& recalls = routers_->recalls;
      const auto next = std::upper_bound(recalls.begin(), recalls.end(), point.recall);
      point.recall = next == recalls.end() ? 0 : *next;
    }
  }

  OperatingPoint dense_point() const {
    return sparsity::dense_profile(weights_.config.layers, weights_.config.kv_heads).points[0];
  }

  /// What a trial uses up of a budget, the largest of three shares: of the loss of perplexity, of
  /// what answers to the held-out retrieval prompts may lose, and, over 1, of answers that are
  /// gone.
  Solver::Cost cost(double max_loss) const {
    const double budget = max_loss * kSafety - neurons_of(max_loss).loss;
    return [this, budget](const Trial& trial) {
      double cost = std::max(trial.loss / budget, trial.answer_loss / kAnswerLoss);
      // Where a text says nothing of its next token, reading nothing loses nothing; but a point
      // that reads nothing is none.
      if (trial.effective_density <= 0) cost = std::max(cost, 2.0);
      const int gone = missing(trial.needles);
      if (gone <= 0) return cost;
      return std::max(cost, 1 + static_cast<double>(gone) / result_.dense_needles);
    };
  }

  /// Answers gone, beyond the one in 40 prompts that may go.
  int missing(int needles) const {
    if (!answers_) return 0;
    return result_.dense_needles - needles - result_.needle_count / 40;
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
    return lost / weights;
  }

  /// A planner's (null: the dense) numbers on some windows, or what is stored of them.
  Result<Measured> measure_windows(const std::string& key, const std::string& stage,
                                   const MakePlanner& make, const Windows& windows) {
    Measured measured;
    if (windows.count == 0) return measured;
    if (const ordered_json* stored = state_.find(key)) {
      measured.loss = (*stored)["loss"];
      measured.tokens = (*stored)["tokens"];
      measured.kv_bytes = (*stored)["kv_bytes"];
      measured.dense_kv_bytes = (*stored)["dense_kv_bytes"];
      return measured;
    }
    std::unique_ptr<model::Planner> planner;
    if (make != nullptr) {
      POLAR_ASSIGN(planner, make());
    }
    EvaluateOptions evaluation = evaluate_options(stage);
    // Known or not, it is not asked for here.
    if (planner != nullptr) evaluation.known_dense_perplexity = 1;
    POLAR_ASSIGN(const Evaluation made,
                 evaluate(device_, weights_, windows, planner.get(), evaluation));
    measured.tokens = static_cast<double>(made.tokens);
    measured.loss = measured.tokens *
                    std::log(planner != nullptr ? made.sparse_perplexity : made.dense_perplexity);
    measured.kv_bytes = made.kv_bytes;
    measured.dense_kv_bytes = made.dense_kv_bytes;
    POLAR_RETURN_IF_ERROR(state_.put(key, {{"loss", measured.loss},
                                           {"tokens", measured.tokens},
                                           {"kv_bytes", measured.kv_bytes},
                                           {"dense_kv_bytes", measured.dense_kv_bytes}}));
    return measured;
  }

  /// Answers to the held-out retrieval prompts, or what is stored of them. Trial and CurvePoint
  /// have the same numbers.
  template <typename Point>
  Status ask(const std::string& key, const MakePlanner& make, Point& point) {
    if (const ordered_json* stored = state_.find(key)) {
      point.needles = (*stored)["needles"];
      point.answer_loss = (*stored)["answer_loss"];
      return {};
    }
    POLAR_ASSIGN(const auto planner, make());
    const std::vector<NeedleAnswers> answers = retrieval_->ask(planner.get());
    point.needles = sum_up(answers).sparse_correct;
    point.answer_loss = answers_ ? answer_loss(answers) : 0;
    return state_.put(key, {{"needles", point.needles}, {"answer_loss", point.answer_loss}});
  }

  /// Loss, bytes and retrieval of a planner on the whole held-out slice.
  Status measure_once(const std::string& key, const std::string& stage, const MakePlanner& make,
                      CurvePoint& point) {
    POLAR_ASSIGN(Measured whole, measure_windows(key + ", part", stage, make, slices_.part));
    POLAR_ASSIGN(const Measured rest, measure_windows(key + ", rest", stage, make, slices_.rest));
    whole.add(rest);
    point.loss = whole.loss_beside(dense_whole_);
    point.effective_density = whole.density();
    return ask(key + ", answers", make, point);
  }

  /// A trial on the part of the held-out slice, then `rest`: on all of it. Where retrieval decides
  /// nothing the prompts are not asked.
  Status measure_trial(Trial& trial, bool rest) {
    const std::string& name = trial.point.name;
    const std::string key = "trial " + name + of_routed(trial.point);
    const MakePlanner make = [&] { return planner_of(trial.point); };
    POLAR_ASSIGN(Measured measured, measure_windows(key + ", part", name, make, slices_.part));
    trial.part_loss = measured.loss_beside(dense_part_);
    if (!rest) {
      trial.loss = trial.part_loss;
      trial.effective_density = measured.density();
      trial.needles = result_.dense_needles;
      return answers_ ? ask(key + ", answers", make, trial) : Status{};
    }
    POLAR_ASSIGN(const Measured others, measure_windows(key + ", rest", name, make, slices_.rest));
    measured.add(others);
    trial.loss = measured.loss_beside(dense_whole_);
    trial.effective_density = measured.density();
    return {};
  }

  /// The chosen point beside dense, row by row.
  Result<sparsity::Quality> final_quality(const OperatingPoint& point, const std::string& trial) {
    const std::string key = "beside dense: " + trial + of_routed(point) + of_recall(point);
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
    if (point.limits.routed > 0 || point.recall > 0) profile.routers = routers_;
    return point_planner(device_, profile, 0);
  }

  static constexpr int kImportanceRecent = 8;
  /// A point must do better on the held-out slice than the budget says, for texts that calibration
  /// never saw: SmolLM2's points lost 1.7 to 4.6 times as much there (docs/results.md).
  static constexpr double kSafety = 1.0 / 3;
  /// Of the budget, what neurons alone may lose: they pay at small batches only, pages at all.
  static constexpr double kNeuronShare = 0.125;
  /// Retrieval is not for sale: whatever the budget, the right answers' probability (a geometric
  /// mean) may fall by a tenth.
  static constexpr double kAnswerLoss = 0.1;

  backend::Device& device_;
  const model::Weights& weights_;
  const CalibrateOptions& options_;
  CalibrationState& state_;
  Slices slices_;
  std::unique_ptr<Retrieval> retrieval_;  // the held-out prompts
  /// Whether the dense model gives away at least one answer's worth of probability: if not, the
  /// retrieval prompts decide nothing, and rank units by their places alone.
  bool answers_ = false;
  Measured dense_part_, dense_whole_;
  Ranking ranking_;
  std::shared_ptr<const sparsity::Routers> routers_;  // of heads and of neurons; null: nothing
  std::map<double, Neurons> neurons_;                 // by max_loss
  std::unique_ptr<Solver> solver_;
  Calibration result_;
};

ordered_json identity_of(const std::string& fingerprint, const CalibrateOptions& options,
                         size_t text_bytes) {
  return {{"search", 6},  // what the keys and values of the state mean
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
  POLAR_RETURN_IF_ERROR(calibrator.prepare_routers());
  POLAR_RETURN_IF_ERROR(calibrator.measure_dense());
  POLAR_RETURN_IF_ERROR(calibrator.measure_importance());
  POLAR_RETURN_IF_ERROR(calibrator.prepare_solver());
  calibrator.begin_profile();
  std::vector<double> losses = options.max_losses;
  std::sort(losses.begin(), losses.end());
  for (const double loss : losses) POLAR_RETURN_IF_ERROR(calibrator.search(loss));
  for (const double loss : losses) POLAR_RETURN_IF_ERROR(calibrator.choose(loss));
  POLAR_RETURN_IF_ERROR(calibrator.measure_curve());
  Calibration calibration = calibrator.finish(fingerprint);
  if (calibration.profile.routes_units())
    POLAR_RETURN_IF_ERROR(sparsity::write_routers(directory, *calibration.profile.routers));
  POLAR_RETURN_IF_ERROR(sparsity::write_profile(directory, calibration.profile));
  return calibration;
}

}  // namespace polar::study
