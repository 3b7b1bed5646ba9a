#pragma once
// What decides a calibration: planners on held-out windows and retrieval prompts.

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "study/calibration_slices.h"
#include "study/calibration_state.h"

namespace polar::study {

/// What some windows lose and read.
struct Measured {
  double loss = 0, tokens = 0;  // nats, summed over tokens
  double kv_bytes = 0, dense_kv_bytes = 0;

  void add(const Measured& other);
  double mean_loss() const { return loss / tokens; }
  double density() const { return dense_kv_bytes > 0 ? kv_bytes / dense_kv_bytes : 1.0; }
  /// Perplexity ratio - 1.
  double loss_beside(const Measured& dense) const;
};

/// Measures planners on the held-out slice. Each measurement is made once: under its key it stands
/// in the run's state.
class HeldOut {
 public:
  using MakePlanner = std::function<Result<std::unique_ptr<model::Planner>>()>;
  /// Answers to the retrieval prompts.
  struct Answers {
    int correct = 0;
    double loss = 0;  // log-probability, nats, mean over the prompts by how likely dense answers
  };

  /// Takes the slices' held-out retrieval prompts, prefills them and measures dense. All arguments
  /// but the slices must outlive it.
  static Result<std::unique_ptr<HeldOut>> create(backend::Device& device,
                                                 const model::Weights& weights,
                                                 const CalibrateOptions& options,
                                                 CalibrationState& state, Slices& slices);

  /// A planner on the part of the windows, on the rest of them, and on the prompts. `stage`: what
  /// progress calls it.
  Result<Measured> part(const std::string& key, const std::string& stage, const MakePlanner& make);
  Result<Measured> rest(const std::string& key, const std::string& stage, const MakePlanner& make);
  Result<Answers> answers(const std::string& key, const MakePlanner& make);
  /// A planner beside dense, row by row, on everything.
  Result<sparsity::Quality> beside_dense(const std::string& key, const std::string& stage,
                                         const MakePlanner& make);

  const Measured& dense_part() const { return dense_part_; }
  const Measured& dense_whole() const { return dense_whole_; }
  int dense_answers() const { return dense_answers_; }
  int prompts() const { return prompts_; }
  /// Whether the dense model gives away at least one answer's worth of probability: if not, the
  /// retrieval prompts decide nothing.
  bool answers_decide() const { return decide_; }
  /// Answers gone, beyond the one in 40 prompts that may go.
  int missing(int correct) const;

 private:
  HeldOut(backend::Device& device, const model::Weights& weights, const CalibrateOptions& options,
          CalibrationState& state)
      : device_(device), weights_(weights), options_(options), state_(state) {}
  EvaluateOptions evaluate_options(const std::string& stage) const;
  /// `make` null: dense.
  Result<Measured> measure(const std::string& key, const std::string& stage,
                           const MakePlanner& make, const Windows& windows);

  backend::Device& device_;
  const model::Weights& weights_;
  const CalibrateOptions& options_;
  CalibrationState& state_;
  Windows whole_, part_, rest_;
  std::unique_ptr<Retrieval> retrieval_;
  Measured dense_part_, dense_whole_;
  int dense_answers_ = 0, prompts_ = 0;
  bool decide_ = false;
};

}  // namespace polar::study
