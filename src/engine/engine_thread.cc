#include "engine/engine_thread.h"

#include <algorithm>
#include <utility>

namespace polar::engine {

namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

TokenInfo token_info(const backend::Sampled& sampled, int alternatives) {
  TokenInfo info{sampled.token, sampled.logprob, {}};
  for (int i = 0; i < std::min(alternatives, sampled.top_count); ++i)
    info.top.emplace_back(sampled.top_token[i], sampled.top_logprob[i]);
  return info;
}

bool contains(const std::vector<int32_t>& values, int32_t value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

}  // namespace

EngineThread::EngineThread(std::shared_ptr<CommandQueue> commands,
                           std::unique_ptr<model::Planner> planner,
                           std::unique_ptr<StepRunner> runner, const SchedulerLimits& limits,
                           bool pipelined)
    : commands_(std::move(commands)),
      planner_(std::move(planner)),
      runner_(std::move(runner)),
      scheduler_(limits),
      pipelined_(pipelined) {
  publish_stats();
}

void EngineThread::run() {
  std::unique_ptr<OpenStep> open;
  while (take_commands(scheduler_.idle() && open == nullptr)) {
    // Penalties are computed on the host from the tokens so far: then the step before must be seen.
    if (open != nullptr && needs_tokens()) read(std::move(open));
    std::unique_ptr<OpenStep> next;
    if (StepPlan plan = scheduler_.schedule(); !plan.empty()) {
      mark_started(plan);
      next = runner_->queue(std::move(plan));
    }
    if (open != nullptr) read(std::move(open));
    open = std::move(next);
    if (open != nullptr && !pipelined_) read(std::move(open));
    publish_stats();
  }
  if (open != nullptr) read(std::move(open));
  while (!jobs_.empty()) cancel(*jobs_.begin()->second);
  publish_stats();
}

bool EngineThread::needs_tokens() const {
  return std::any_of(jobs_.begin(), jobs_.end(),
                     [](const auto& job) { return job.second->edits.need_tokens(); });
}

/// Notes when requests leave the queue.
void EngineThread::mark_started(const StepPlan& plan) {
  const Clock::time_point now = Clock::now();
  for (const StepChunk& chunk : plan.chunks) {
    Job& job = static_cast<Job&>(*chunk.sequence);
    if (job.started != Clock::time_point{}) continue;
    job.started = now;
    job.usage.queue_seconds = seconds(now - job.submitted);
  }
}

/// False when the engine is told to stop.
bool EngineThread::take_commands(bool wait) {
  Commands commands = commands_->take(wait);
  for (std::unique_ptr<Job>& submitted : commands.submitted) {
    ++counters_.requests;
    Job* job = submitted.get();
    job->taken_at_step = counters_.steps;
    jobs_[job->generation->id()] = job;
    scheduler_.add(std::move(submitted));
  }
  for (const uint64_t id : commands.cancelled) {
    if (const auto found = jobs_.find(id); found != jobs_.end()) cancel(*found->second);
  }
  return !commands.stop;
}

void EngineThread::cancel(Job& job) {
  ++counters_.cancelled;
  finish(job, FinishReason::kCancelled, {});
}

void EngineThread::finish(Job& job, FinishReason reason, Event event) {
  ++counters_.finished;
  job.usage.cached_tokens = job.cached;
  counters_.prompt_tokens += job.prompt;
  counters_.cached_tokens += job.cached;
  event.finish = reason;
  event.usage = job.usage;
  const std::shared_ptr<Generation> generation = std::move(job.generation);
  jobs_.erase(generation->id());
  scheduler_.finish(job);  // `job` may be gone now
  publish_stats();         // before the caller can know
  generation->put(std::move(event));
}

void EngineThread::read(std::unique_ptr<OpenStep> step) {
  runner_->wait(*step);
  ++counters_.steps;
  const backend::Sampled* results = step->sampled.data();
  int planned = 0;
  for (const StepChunk& chunk : step->plan.chunks) {
    // Rows of a sequence that ended after they were queued are dropped.
    if (!chunk.sequence->done()) read_chunk(*step, chunk, results, planned);
    results += chunk.logit_rows();
    if (chunk.planned) planned += chunk.rows;
  }
  scheduler_.complete(step->plan);
}

/// `planned`: index of the chunk's first row among the step's planned rows.
void EngineThread::count_reads(const OpenStep& step, const StepChunk& chunk, int planned,
                               Job& job) {
  const backend::KvView& kv = runner_->kv();
  for (int row = 0; row < chunk.rows; ++row) {
    const double read = kv.bytes(step.read[planned + row]);
    const int32_t blocks = runner_->dense_blocks(chunk.position + row);
    const double dense = kv.bytes({blocks});
    counters_.kv_blocks_read += step.read[planned + row].blocks;
    counters_.kv_blocks_dense += blocks;
    job.usage.kv_bytes_read += read;
    job.usage.kv_bytes_dense += dense;
    counters_.kv_bytes_read += read;
    counters_.kv_bytes_dense += dense;
    if (job.request.trace) runner_->add_read(step, planned + row, chunk.position + row, job.read);
  }
}

void EngineThread::read_chunk(const OpenStep& step, const StepChunk& chunk,
                              const backend::Sampled* results, int planned) {
  Job& job = static_cast<Job&>(*chunk.sequence);
  if (chunk.planned) count_reads(step, chunk, planned, job);
  Event event;
  for (int row = 0; row < chunk.score_rows; ++row)
    event.prompt.push_back(token_info(results[row], job.request.prompt_logprobs));
  if (!chunk.samples) {
    if (job.max_output == 0 && chunk.position + chunk.rows == job.prompt) {
      job.usage.prefill_seconds = seconds(Clock::now() - job.started);
      finish(job, FinishReason::kLength, std::move(event));
    } else if (!event.prompt.empty()) {
      event.usage = job.usage;
      job.generation->put(std::move(event));
    }
    return;
  }
  const backend::Sampled& sampled = results[chunk.score_rows];
  scheduler_.accept(job, sampled.token);
  job.edits.accept(sampled.token);
  event.tokens.push_back(token_info(sampled, job.request.logprobs));
  event.read = std::exchange(job.read, {});
  const Clock::time_point now = Clock::now();
  if (job.usage.completion_tokens++ == 0) {
    job.first_token = now;
    job.usage.prefill_seconds = seconds(job.first_token - job.started);
    job.usage.first_token_steps = counters_.steps - job.taken_at_step;
  }
  job.usage.decode_seconds = seconds(now - job.first_token);
  ++counters_.output_tokens;
  if (contains(job.ends, sampled.token)) {
    finish(job, FinishReason::kStop, std::move(event));
  } else if (job.usage.completion_tokens == job.max_output) {
    finish(job, FinishReason::kLength, std::move(event));
  } else {
    job.usage.cached_tokens = job.cached;
    event.usage = job.usage;
    job.generation->put(std::move(event));
  }
}

void EngineThread::publish_stats() {
  counters_.running = scheduler_.running();
  counters_.waiting = scheduler_.waiting();
  counters_.pages = scheduler_.limits().pages;
  counters_.free_pages = scheduler_.available_pages();
  counters_.cached_pages = scheduler_.prefix_cache().cached_pages();
  counters_.preemptions = scheduler_.preemptions();
  counters_.evictions = scheduler_.prefix_cache().evictions();
  if (const auto* neurons = planner_->neurons()) counters_.neuron_density = neurons->share();
  counters_.plan_seconds = runner_->plan_seconds();
  const std::scoped_lock lock(stats_mutex_);
  published_ = counters_;
}

EngineStats EngineThread::stats() const {
  const std::scoped_lock lock(stats_mutex_);
  return published_;
}

}  // namespace polar::engine
