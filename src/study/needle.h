#pragma once
// Retrieval: a fact hidden in a long text, asked for at its end. Perplexity alone does not see
// whether a policy can still find it.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "study/importance.h"
#include "study/sequence_cache.h"

namespace polar::study {

/// One retrieval prompt, built so that rows behind `passage.prompt` (the question and its answer)
/// run as decode steps.
struct Needle {
  Passage passage;   // scored rows: those that predict the answer's tokens
  int wording = 0;   // which of kNeedleWordings
  double depth = 0;  // where the fact stands: 0 begin, 1 end of the text
};

/// Wordings 0 to 2 are for calibration, 3 to 5 are never calibrated on.
inline constexpr int kNeedleWordings = 6;
inline constexpr int kCalibrationWordings = 3;

using Encode = std::function<std::vector<int32_t>(const std::string& text, bool add_special)>;

/// `count` prompts of about `length` tokens (never more), cut from `haystack` (tokens without
/// special ones) at seeded places; facts, depths and the wordings [first_wording, last_wording)
/// vary. `leading`: the token put in front of every text, or -1. Errors: too short a haystack or
/// length.
Result<std::vector<Needle>> make_needles(const std::string& where,
                                         const std::vector<int32_t>& haystack, const Encode& encode,
                                         int leading, int length, int count, int first_wording,
                                         int last_wording, uint64_t seed);

/// One way of answering one retrieval prompt.
struct Answer {
  bool correct = true;         // every token of the answer is the likeliest
  double log_probability = 0;  // of the whole answer, nats
};

/// The answers to one retrieval prompt, and what kind of prompt it is.
struct NeedleAnswers {
  int length = 0;  // tokens
  int wording = 0;
  double depth = 0;
  Answer dense, sparse;
};

/// Sums over retrieval prompts.
struct NeedleResult {
  int count = 0;
  int dense_correct = 0, sparse_correct = 0;
  double dense_log_probability = 0,
         sparse_log_probability = 0;  // of the whole answer, mean over prompts, nats
};
NeedleResult sum_up(std::span<const NeedleAnswers> answers);

/// Asks the same retrieval prompts again and again. The prompts are prefilled once, dense; their KV
/// is kept (needles x length tokens of it), only the questions run.
class Retrieval {
 public:
  /// Prefills, and asks dense. Device and weights must outlive it. `extras`: what the planners to
  /// come want (choosing_rows: whether they choose pages at all).
  static Result<std::unique_ptr<Retrieval>> create(backend::Device& device,
                                                   const model::Weights& weights,
                                                   std::vector<Needle> needles, DType kv_dtype,
                                                   PageExtras extras = {});

  /// The dense answers beside those with `planner` (null: dense alone), one per needle.
  std::vector<NeedleAnswers> ask(model::Planner* planner);

 private:
  Retrieval(backend::Device& device, const model::Weights& weights, std::vector<Needle> needles)
      : device_(device), weights_(weights), needles_(std::move(needles)) {}
  std::vector<Answer> answer(model::Planner& planner);
  std::vector<float> asked_logits(int needle, model::Planner& planner);

  backend::Device& device_;
  const model::Weights& weights_;
  std::vector<Needle> needles_;
  std::unique_ptr<model::Decoder> decoder_;
  std::unique_ptr<SequenceCache> cache_;
  model::DensePlanner dense_planner_;
  std::vector<Answer> dense_;
};

/// Asks every prompt once, a few at a time: memory holds the KV of `at_once` prompts, however many
/// there are. `planner` null: dense alone.
Result<std::vector<NeedleAnswers>> ask_once(backend::Device& device, const model::Weights& weights,
                                            std::span<const Needle> needles,
                                            model::Planner* planner, DType kv_dtype,
                                            const std::function<void(int done, int of)>& progress,
                                            int at_once = 4);

}  // namespace polar::study
