#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/command_queue.h"
#include "engine/engine_thread.h"
#include "model/profile_planner.h"

namespace polar::engine {

using backend::kPageTokens;

namespace {

int pages_for(int tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

std::string mib(size_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / 1048576.0);
}

/// How large the cache and the steps may be.
Result<SchedulerLimits> choose_limits(const backend::Device& device,
                                      const model::ModelConfig& config,
                                      const EngineOptions& options, const model::Planner& planner) {
  const backend::DeviceInfo info = device.info();
  SchedulerLimits limits;
  limits.max_batch = options.max_batch > 0 ? options.max_batch : (info.is_cpu ? 32 : 128);
  limits.step_rows = options.step_rows > 0 ? options.step_rows : (info.is_cpu ? 512 : 2048);
  limits.step_rows = std::max(limits.step_rows, limits.max_batch);
  limits.step_planned_rows = std::min(limits.step_rows, std::max(limits.max_batch, 64));
  limits.step_logit_rows = limits.max_batch + 32;
  limits.prefix_cache = options.prefix_cache;
  if (options.max_length > config.max_positions) {
    return bad_input("command line", "--max-model-len", std::to_string(options.max_length),
                     fmt::format("at most {}, the model's longest context", config.max_positions));
  }
  limits.max_length = options.max_length > 0 ? options.max_length : config.max_positions;

  backend::KvView one{nullptr, options.kv_dtype, config.layers,
                      1,       config.kv_heads,  config.head_dim};
  one.page_score = planner.page_score();
  const size_t budget = options.kv_bytes > 0 ? options.kv_bytes : info.free_bytes / 2;
  const size_t page_bytes = one.page_bytes() + (planner.selects_pages() ? one.indices_bytes() : 0) +
                            (planner.uses_summaries() ? one.summaries_bytes() : 0);
  const size_t affordable = budget / page_bytes;
  const size_t wanted = static_cast<size_t>(limits.max_batch) * pages_for(limits.max_length);
  limits.pages = static_cast<int>(std::min<size_t>({affordable, wanted, 1u << 30}));
  if (limits.pages < pages_for(limits.max_length)) {
    const bool fixed = options.max_length > 0;
    if (fixed || limits.pages == 0) {
      return bad_input(options.kv_bytes > 0 ? "command line" : "memory", "--kv-memory", mib(budget),
                       fmt::format("at least {} for {} tokens",
                                   mib(page_bytes * pages_for(fixed ? limits.max_length : 1)),
                                   fixed ? limits.max_length : kPageTokens));
    }
    limits.max_length = limits.pages * kPageTokens;
  }
  return limits;
}

/// What reads and computes as the profile says, neurons where the options want them chosen.
Result<std::unique_ptr<model::Planner>> make_planner(backend::Device& device,
                                                     const model::Weights& weights,
                                                     const sparsity::Profile* profile,
                                                     const EngineOptions& options) {
  if (profile == nullptr || profile->points.size() < 2)
    return std::unique_ptr<model::Planner>(new model::DensePlanner);
  std::shared_ptr<const model::MlpCost> cost;
  if (profile->routes_neurons())
    POLAR_RETURN_IF_ERROR(model::check_chooses_neurons(weights.config, "profile"));
  if (profile->routes_neurons() && options.neurons == EngineOptions::Neurons::kWherePaying) {
    POLAR_ASSIGN(model::MlpCost measured, model::MlpCost::measure(device, weights));
    cost = std::make_shared<const model::MlpCost>(std::move(measured));
  }
  POLAR_ASSIGN(auto planner, model::ProfilePlanner::create(device, *profile, cost));
  return std::unique_ptr<model::Planner>(std::move(planner));
}

Error wrong(std::string_view key, const std::string& found, const std::string& expected) {
  return bad_input("request", key, found, expected);
}

}  // namespace

Engine::Engine(const model::ModelConfig& config, int points) : config_(config), points_(points) {}

Result<std::unique_ptr<Engine>> Engine::create(backend::Device& device,
                                               const model::Weights& weights,
                                               const sparsity::Profile* profile,
                                               const EngineOptions& options) {
  const int points = profile == nullptr ? 1 : static_cast<int>(profile->points.size());
  std::unique_ptr<Engine> engine(new Engine(weights.config, points));
  POLAR_ASSIGN(auto planner, make_planner(device, weights, profile, options));
  POLAR_ASSIGN(engine->limits_, choose_limits(device, weights.config, options, *planner));
  const StepLimits limits{engine->limits_, options.kv_dtype};
  POLAR_ASSIGN(auto runner, StepRunner::create(device, weights, *planner, limits));
  const bool pipelined =
      options.pipeline == EngineOptions::Pipeline::kOn ||
      (options.pipeline == EngineOptions::Pipeline::kByDevice && !device.info().is_cpu);
  engine->commands_ = std::make_shared<CommandQueue>();
  engine->worker_ = std::make_unique<EngineThread>(engine->commands_, std::move(planner),
                                                   std::move(runner), engine->limits_, pipelined);
  engine->thread_ = std::thread([worker = engine->worker_.get()] { worker->run(); });
  return engine;
}

Engine::~Engine() {
  if (!thread_.joinable()) return;
  commands_->stop();
  thread_.join();
}

EngineStats Engine::stats() const {
  return worker_->stats();
}

Status Engine::check(const GenerationRequest& request) const {
  const SamplingParams& s = request.sampling;
  const auto length = static_cast<int64_t>(request.prompt.size());
  if (length == 0) return wrong("prompt", "no tokens", "at least one");
  const int64_t longest = limits_.max_length - (request.max_tokens > 0 ? 1 : 0);
  if (length > longest)
    return wrong("prompt", fmt::format("{} tokens", length), fmt::format("at most {}", longest));
  const auto check_token = [&](std::string_view key, int32_t token) -> Status {
    if (token >= 0 && token < config_.vocabulary) return {};
    return wrong(key, fmt::format("token {}", token),
                 fmt::format("tokens from 0 to {}", config_.vocabulary - 1));
  };
  for (const int32_t token : request.prompt) POLAR_RETURN_IF_ERROR(check_token("prompt", token));
  for (const auto& [token, bias] : s.logit_bias) {
    POLAR_RETURN_IF_ERROR(check_token("logit_bias", token));
    if (!std::isfinite(bias) || std::fabs(bias) > 1e6f)
      return wrong("logit_bias", fmt::format("{}", bias), "a number from -1e6 to 1e6");
  }
  const struct {
    const char* key;
    double value, low, high;
    const char* expected;
  } ranges[] = {
      {"max_tokens", double(request.max_tokens), 0, 1 << 30, "0 or more"},
      {"min_tokens", double(request.min_tokens), 0, 1 << 30, "0 or more"},
      {"temperature", s.temperature, 0, 1e4, "a number from 0 to 1e4"},
      {"top_k", double(s.top_k), 0, 1 << 30, "0 (all) or more"},
      {"top_p", s.top_p, 1e-9, 1, "a number above 0 and up to 1"},
      {"min_p", s.min_p, 0, 1, "a number from 0 to 1"},
      {"repetition_penalty", s.repetition_penalty, 1e-3, 1e3, "a number from 0.001 to 1000"},
      {"presence_penalty", s.presence_penalty, -1e3, 1e3, "a number from -1000 to 1000"},
      {"frequency_penalty", s.frequency_penalty, -1e3, 1e3, "a number from -1000 to 1000"},
      {"logprobs", double(request.logprobs), -1, backend::kMaxTopLogprobs, "0 to 20"},
      {"prompt_logprobs", double(request.prompt_logprobs), -1, backend::kMaxTopLogprobs, "0 to 20"},
      {"point", double(request.point), 0, points_ - 1.0, "a point of the profile"},
  };
  for (const auto& range : ranges) {
    if (!(range.value >= range.low && range.value <= range.high))
      return wrong(range.key, fmt::format("{}", range.value), range.expected);
  }
  return {};
}

Result<std::shared_ptr<Generation>> Engine::submit(GenerationRequest request) {
  POLAR_RETURN_IF_ERROR(check(request));
  auto job = std::make_unique<Job>();
  job->generation = std::make_shared<Generation>(commands_, next_id_++, std::move(request.on_news));
  job->ends = request.stop_token_ids;
  if (!request.ignore_eos)
    job->ends.insert(job->ends.end(), config_.eos_tokens.begin(), config_.eos_tokens.end());
  std::vector<int32_t> forbidden;  // among the first min_tokens; ids the model lacks never come
  for (const int32_t token : job->ends) {
    if (token >= 0 && token < config_.vocabulary) forbidden.push_back(token);
  }
  std::sort(forbidden.begin(), forbidden.end());
  forbidden.erase(std::unique(forbidden.begin(), forbidden.end()), forbidden.end());
  job->edits = LogitEdits(request, std::move(forbidden));
  job->tokens = std::move(request.prompt);
  job->prompt = static_cast<int>(job->tokens.size());
  job->max_output = std::min(request.max_tokens, limits_.max_length - job->prompt);
  job->point = request.point;
  job->score_prompt = request.prompt_logprobs >= 0;
  job->usage.prompt_tokens = job->prompt;
  job->request = std::move(request);
  job->submitted = std::chrono::steady_clock::now();
  std::shared_ptr<Generation> generation = job->generation;
  commands_->submit(std::move(job));
  return generation;
}

}  // namespace polar::engine
