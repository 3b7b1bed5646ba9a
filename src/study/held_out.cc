#include "study/held_out.h"

#include <cmath>

namespace polar::study {

using nlohmann::ordered_json;

void Measured::add(const Measured& other) {
  loss += other.loss;
  tokens += other.tokens;
  kv_bytes += other.kv_bytes;
  dense_kv_bytes += other.dense_kv_bytes;
}

double Measured::loss_beside(const Measured& dense) const {
  return std::exp(mean_loss() - dense.mean_loss()) - 1;
}

Result<std::unique_ptr<HeldOut>> HeldOut::create(backend::Device& device,
                                                 const model::Weights& weights,
                                                 const CalibrateOptions& options,
                                                 CalibrationState& state, Slices& slices) {
  std::unique_ptr<HeldOut> made(new HeldOut(device, weights, options, state));
  made->whole_ = slices.held_out;
  made->part_ = slices.part;
  made->rest_ = slices.rest;
  POLAR_ASSIGN(made->retrieval_,
               Retrieval::create(device, weights, std::move(slices.held_out_needles),
                                 options.kv_dtype, {1, options.page_score, true}));
  POLAR_ASSIGN(made->dense_part_, made->measure("dense, part", "dense", nullptr, made->part_));
  POLAR_ASSIGN(made->dense_whole_, made->measure("dense, rest", "dense", nullptr, made->rest_));
  made->dense_whole_.add(made->dense_part_);
  const std::vector<NeedleAnswers> answers = made->retrieval_->ask(nullptr);
  const NeedleResult dense = sum_up(answers);
  made->dense_answers_ = dense.dense_correct;
  made->prompts_ = dense.count;
  double known = 0;
  for (const NeedleAnswers& answer : answers) known += std::exp(answer.dense.log_probability);
  made->decide_ = known >= 1;
  return made;
}

EvaluateOptions HeldOut::evaluate_options(const std::string& stage) const {
  EvaluateOptions evaluation;
  evaluation.prompt = options_.prompt_tokens();
  evaluation.kv_dtype = options_.kv_dtype;
  evaluation.progress = [this, stage](int done, int windows) {
    if (options_.progress) options_.progress(stage, done, windows);
  };
  return evaluation;
}

Result<Measured> HeldOut::measure(const std::string& key, const std::string& stage,
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

Result<Measured> HeldOut::part(const std::string& key, const std::string& stage,
                               const MakePlanner& make) {
  return measure(key + ", part", stage, make, part_);
}

Result<Measured> HeldOut::rest(const std::string& key, const std::string& stage,
                               const MakePlanner& make) {
  return measure(key + ", rest", stage, make, rest_);
}

Result<HeldOut::Answers> HeldOut::answers(const std::string& key, const MakePlanner& make) {
  Answers found;
  if (const ordered_json* stored = state_.find(key + ", answers")) {
    found.correct = (*stored)["needles"];
    found.loss = (*stored)["answer_loss"];
    return found;
  }
  POLAR_ASSIGN(const auto planner, make());
  const std::vector<NeedleAnswers> answers = retrieval_->ask(planner.get());
  found.correct = sum_up(answers).sparse_correct;
  // A prompt that dense does not answer says nothing.
  double lost = 0, weights = 0;
  for (const NeedleAnswers& answer : answers) {
    const double weight = std::exp(answer.dense.log_probability);
    lost += weight * (answer.dense.log_probability - answer.sparse.log_probability);
    weights += weight;
  }
  if (decide_) found.loss = lost / weights;
  POLAR_RETURN_IF_ERROR(
      state_.put(key + ", answers", {{"needles", found.correct}, {"answer_loss", found.loss}}));
  return found;
}

Result<sparsity::Quality> HeldOut::beside_dense(const std::string& key, const std::string& stage,
                                                const MakePlanner& make) {
  sparsity::Quality quality;
  quality.text = options_.text_name + ", " + std::to_string(whole_.count) +
                 " held-out windows of " + std::to_string(options_.context);
  if (const ordered_json* stored = state_.find("beside dense: " + key)) {
    read_quality(*stored, quality);
    return quality;
  }
  POLAR_ASSIGN(auto planner, make());
  POLAR_ASSIGN(const Evaluation measured,
               evaluate(device_, weights_, whole_, planner.get(), evaluate_options(stage)));
  const NeedleResult needles = sum_up(retrieval_->ask(planner.get()));
  quality.perplexity_ratio = measured.ratio();
  quality.kl = measured.kl;
  quality.agreement = measured.agreement;
  quality.effective_density = measured.effective_density();
  quality.neuron_share = measured.neuron_share;
  quality.needles = needles.count;
  quality.dense_needles = needles.dense_correct;
  quality.sparse_needles = needles.sparse_correct;
  POLAR_RETURN_IF_ERROR(state_.put("beside dense: " + key, quality_json(quality)));
  return quality;
}

int HeldOut::missing(int correct) const {
  return decide_ ? dense_answers_ - correct - prompts_ / 40 : 0;
}

}  // namespace polar::study
