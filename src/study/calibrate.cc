#include "study/calibrate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "study/held_out.h"
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
    const Policy window;  // what `--policy static` leaves to the others where nothing else is said
    std::vector<Passage> asked;
    for (const Needle& needle : slices_.needles) asked.push_back(needle.passage);
    POLAR_ASSIGN(result_.text_importance, units.left_out("text", slices_.importance, window));
    POLAR_ASSIGN(result_.retrieval_importance, units.left_out("retrieval", asked, window));
    const std::vector<double>& text = result_.text_importance;
    const std::vector<double>& retrieval = result_.retrieval_importance;
    ranking_.by_place = rank_units(text, retrieval);
    // Questions that dense cannot answer still say which units look far, but not how much it is
    // worth.
    ranking_.units =
        rank_by_share(text, held_out_->answers_decide() ? retrieval : std::vector<double>());
    if (ranking_.by_place == ranking_.units) ranking_.by_place.clear();
    ranking_.kv_heads = weights_.config.kv_heads;
    ranking_.context = options_.context;
    ranking_.deal = unit_options(options_.prompt_tokens(), options_.context, index_share());
    POLAR_RETURN_IF_ERROR(units.add_losses("text", slices_.whole, ranking_.deal));
    return held_out_->answers_decide() ? units.add_losses("retrieval", asked, ranking_.deal)
                                       : Status{};
  }

  Status prepare_solver() {
    SolverOptions solver;
    solver.ranking = ranking_;
    for (const Shape& shape :
         first_shapes(ranking_, routers_ != nullptr && routers_->routes_heads())) {
      if (wanted(shape)) solver.shapes.push_back(shape);
    }
    solver.trials = options_.trials;
    solver.parts = kParts;
    solver.expected = [this](const OperatingPoint& point) { return expected(point); };
    solver.measure_part = [this](Trial& trial) { return measure_trial(trial, false); };
    solver.measure_rest = [this](Trial& trial) { return measure_trial(trial, true); };
    solver_ = std::make_unique<Solver>(std::move(solver));
    return {};
  }

  Status measure_dense() {
    POLAR_ASSIGN(held_out_, HeldOut::create(device_, weights_, options_, state_, slices_));
    result_.dense_perplexity = std::exp(held_out_->dense_whole().mean_loss());
    result_.dense_needles = held_out_->dense_answers();
    result_.needle_count = held_out_->prompts();
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
    point.name = percent_name(max_loss);
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

  /// An operating point of the least loss within a share of the bytes. Retrieval counts as under
  /// kBytesLoss; all neurons are computed.
  Status choose_at(double bytes) {
    POLAR_ASSIGN(const auto best, solver_->solve_at(bytes, cost(kBytesLoss)));
    if (!best) {
      return bad_input("command line", "--max-bytes", percent_name(bytes),
                       "a share of the KV bytes that some assignment can stay within");
    }
    OperatingPoint point = best->point;
    point.name = "bytes-" + percent_name(bytes);
    POLAR_RETURN_IF_ERROR(measure_together(point, best->point.name, 0));
    if (point.limits.routed > 0) result_.profile.routers = routers_;
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
  using MakePlanner = HeldOut::MakePlanner;

  bool wanted(const Shape& shape) const {
    const std::vector<std::string>& policies = options_.policies;
    return policies.empty() ||
           std::find(policies.begin(), policies.end(), shape.policy()) != policies.end();
  }

  static std::string percent_name(double share) {
    std::string name = std::to_string(share * 100);
    name.erase(name.find_last_not_of('0') + 1);
    if (name.back() == '.') name.pop_back();
    return name + "%";
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
      POLAR_ASSIGN(const Measured measured, held_out_->part("trial " + name, name, make));
      POLAR_ASSIGN(const HeldOut::Answers answers, held_out_->answers("trial " + name, make));
      const double loss = measured.loss_beside(held_out_->dense_part());
      if (loss <= max_loss * kNeuronShare && held_out_->missing(answers.correct) <= 0) {
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
      POLAR_ASSIGN(
          point.quality,
          held_out_->beside_dense(trial + of_routed(point) + of_recall(point),
                                  point.name + " beside dense", [&] { return planner_of(point); }));
      point.quality.max_loss = max_loss;
      const bool fits = point.quality.perplexity_ratio - 1 <= max_loss * kSafety &&
                        held_out_->missing(point.quality.sparse_needles) <= 0;
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
      const int gone = held_out_->missing(trial.needles);
      if (gone <= 0) return cost;
      return std::max(cost, 1 + static_cast<double>(gone) / result_.dense_needles);
    };
  }

  /// Loss, bytes and retrieval of a planner on the whole held-out slice.
  Status measure_once(const std::string& key, const std::string& stage, const MakePlanner& make,
                      CurvePoint& point) {
    POLAR_ASSIGN(Measured whole, held_out_->part(key, stage, make));
    POLAR_ASSIGN(const Measured rest, held_out_->rest(key, stage, make));
    whole.add(rest);
    point.loss = whole.loss_beside(held_out_->dense_whole());
    point.effective_density = whole.density();
    POLAR_ASSIGN(const HeldOut::Answers answers, held_out_->answers(key, make));
    point.needles = answers.correct;
    point.answer_loss = answers.loss;
    return {};
  }

  /// A trial on the part of the held-out slice, then `rest`: on all of it. Where retrieval decides
  /// nothing the prompts are not asked.
  Status measure_trial(Trial& trial, bool rest) {
    const std::string& name = trial.point.name;
    const std::string key = "trial " + name + of_routed(trial.point);
    const MakePlanner make = [&] { return planner_of(trial.point); };
    POLAR_ASSIGN(Measured measured, held_out_->part(key, name, make));
    trial.part_loss = measured.loss_beside(held_out_->dense_part());
    if (!rest) {
      trial.loss = trial.part_loss;
      trial.effective_density = measured.density();
      trial.needles = held_out_->dense_answers();
      if (!held_out_->answers_decide()) return {};
      POLAR_ASSIGN(const HeldOut::Answers answers, held_out_->answers(key, make));
      trial.needles = answers.correct;
      trial.answer_loss = answers.loss;
      return {};
    }
    POLAR_ASSIGN(const Measured others, held_out_->rest(key, name, make));
    measured.add(others);
    trial.loss = measured.loss_beside(held_out_->dense_whole());
    trial.effective_density = measured.density();
    return {};
  }

  Result<std::unique_ptr<model::Planner>> planner_of(const OperatingPoint& point) {
    Profile profile = sparsity::dense_profile(weights_.config.layers, weights_.config.kv_heads);
    profile.page_score = options_.page_score;
    profile.points = {point};
    if (point.limits.routed > 0 || point.recall > 0) profile.routers = routers_;
    return point_planner(device_, profile, 0);
  }

  /// A point must do better on the held-out slice than the budget says, for texts that calibration
  /// never saw: SmolLM2's points lost 1.7 to 5.4 times as much there (docs/results.md).
  static constexpr double kSafety = 1.0 / 6;
  /// What points by bytes are compared under: a loss that matters as much as an answer.
  static constexpr double kBytesLoss = 0.03;
  /// Of the budget, what neurons alone may lose: they pay at small batches only, pages at all.
  static constexpr double kNeuronShare = 1.0 / 16;
  /// Retrieval is not for sale: whatever the budget, the right answers' probability (a geometric
  /// mean) may fall by a tenth.
  static constexpr double kAnswerLoss = 0.1;

  backend::Device& device_;
  const model::Weights& weights_;
  const CalibrateOptions& options_;
  CalibrationState& state_;
  Slices slices_;
  std::unique_ptr<HeldOut> held_out_;
  Ranking ranking_;
  std::shared_ptr<const sparsity::Routers> routers_;  // of heads and of neurons; null: nothing
  std::map<double, Neurons> neurons_;                 // by max_loss
  std::unique_ptr<Solver> solver_;
  Calibration result_;
};

ordered_json identity_of(const std::string& fingerprint, const CalibrateOptions& options,
                         size_t text_bytes) {
  return {{"search", 8},  // what the keys and values of the state mean
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
  std::vector<double> bytes = options.max_bytes;
  std::sort(bytes.begin(), bytes.end(), std::greater<>());
  for (const double loss : losses) POLAR_RETURN_IF_ERROR(calibrator.choose(loss));
  for (const double share : bytes) POLAR_RETURN_IF_ERROR(calibrator.choose_at(share));
  POLAR_RETURN_IF_ERROR(calibrator.measure_curve());
  Calibration calibration = calibrator.finish(fingerprint);
  if (calibration.profile.routes_units())
    POLAR_RETURN_IF_ERROR(sparsity::write_routers(directory, *calibration.profile.routers));
  POLAR_RETURN_IF_ERROR(sparsity::write_profile(directory, calibration.profile));
  return calibration;
}

}  // namespace polar::study
