#include "engine/step_runner.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>

#include "backend/ranges.h"
#include "engine/job.h"
#include "engine/tracing_planner.h"

namespace polar::engine {

using backend::kPageTokens;

namespace {

constexpr size_t kAlignment = 64;

size_t aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

StepRunner::StepRunner(backend::Device& device, const model::Weights& weights,
                       model::Planner& planner, const StepLimits& limits)
    : device_(device),
      weights_(weights),
      planner_(planner),
      timed_(planner),
      replay_(device),
      limits_(limits) {}

Result<std::unique_ptr<StepRunner>> StepRunner::create(backend::Device& device,
                                                       const model::Weights& weights,
                                                       model::Planner& planner,
                                                       const StepLimits& limits) {
  std::unique_ptr<StepRunner> runner(new StepRunner(device, weights, planner, limits));
  POLAR_RETURN_IF_ERROR(runner->allocate());
  return runner;
}

Status StepRunner::allocate() {
  const SchedulerLimits& limits = limits_.scheduler;
  const model::ModelConfig& config = weights_.config;
  POLAR_ASSIGN(decoder_, model::Decoder::create(device_, weights_,
                                                {limits.step_rows, limits.step_logit_rows}));
  kv_ = {nullptr, limits_.kv_dtype, config.layers, limits.pages, config.kv_heads, config.head_dim};
  POLAR_ASSIGN(kv_buffer_, device_.allocate(kv_.total_bytes(), "KV cache (less: --kv-memory)"));
  kv_.data = kv_buffer_.as<std::byte>();
  if (planner_.selects_pages()) {
    kv_.page_score = planner_.page_score();
    POLAR_ASSIGN(index_buffer_, device_.allocate(kv_.indices_bytes() * kv_.pages,
                                                 "page scores (less: --kv-memory)"));
    kv_.index = index_buffer_.as<std::byte>();
  }
  if (planner_.uses_summaries()) {
    POLAR_ASSIGN(summary_buffer_, device_.allocate(kv_.summaries_bytes() * kv_.pages,
                                                   "page summaries (less: --kv-memory)"));
    kv_.summaries = summary_buffer_.as<std::byte>();
  }

  const size_t stride =
      std::bit_ceil(static_cast<size_t>((limits.max_length + kPageTokens - 1) / kPageTokens));
  // A step has at most as many chunks as slots.
  const size_t tables = limits.max_batch * stride * sizeof(int32_t);
  const size_t lists = planner_.selects_pages()
                           ? static_cast<size_t>(limits.step_planned_rows) * config.kv_heads *
                                 backend::list_entries(static_cast<int32_t>(stride)) *
                                 sizeof(int32_t)
                           : 0;
  const size_t per_row = 4 * sizeof(int32_t);
  const size_t per_logit_row = 2 * sizeof(int32_t) + sizeof(backend::SampleParams);
  const size_t bytes = limits.step_rows * per_row + limits.step_logit_rows * per_logit_row +
                       (limits.max_batch + 1) * sizeof(int32_t) + tables + lists + 16 * kAlignment;
  POLAR_ASSIGN(arrays_, device_.allocate(bytes, "a step's arrays"));
  POLAR_ASSIGN(edits_buffer_,
               device_.allocate(1024 * sizeof(backend::LogitEdit), "a step's logit edits"));
  POLAR_ASSIGN(last_token_, device_.allocate(limits.max_batch * sizeof(int32_t), "sampled tokens"));
  POLAR_ASSIGN(sampled_, device_.allocate(limits.step_logit_rows * sizeof(backend::Sampled),
                                          "sampled tokens"));
  device_.fill_zero(last_token_.data(), last_token_.bytes());

  std::map<int, int> windows;
  for (const int window : config.sliding_window) ++windows[window];
  windows_.assign(windows.begin(), windows.end());
  return {};
}

std::optional<double> StepRunner::plan_seconds() const {
  if (!device_.info().is_cpu) return std::nullopt;
  return timed_.seconds();
}

int32_t StepRunner::dense_blocks(int position) const {
  int32_t blocks = 0;
  for (const auto& [window, layers] : windows_) {
    blocks += layers * kv_.kv_heads * backend::full_ranges(position, window, 0).tail_count;
  }
  return blocks;
}

void StepRunner::add_read(const OpenStep& step, int row, int position, ReadTrace& trace) const {
  const model::ModelConfig& config = weights_.config;
  const size_t heads = kv_.kv_heads;
  ReadTrace one{1, std::vector<int64_t>(config.layers * heads), {}};
  for (int layer = 0; layer < config.layers; ++layer) {
    const backend::PageRanges* units =
        step.units.data() + (static_cast<size_t>(layer) * step.read.size() + row) * heads;
    for (size_t head = 0; head < heads; ++head)
      one.pages[layer * heads + head] = units[head].count + units[head].tail_count;
    one.dense.push_back(backend::full_ranges(position, config.sliding_window[layer], 0).tail_count);
  }
  trace.add(one);
}

void StepRunner::pack_chunk(const StepChunk& chunk, int sequence) {
  const Job& job = static_cast<const Job&>(*chunk.sequence);
  const int first = static_cast<int>(token_.size());
  chunk_begin_.push_back(first);
  for (int row = 0; row < chunk.rows; ++row) {
    const int position = chunk.position + row;
    token_.push_back(chunk.from_slot ? ~chunk.slot : job.tokens[position]);
    position_.push_back(position);
    sequence_.push_back(sequence);
    point_.push_back(job.point);
  }
  for (int i = 0; i < chunk.score_rows; ++i) {
    const int row = chunk.score_begin + i;
    logit_row_.push_back(first + row);
    scores_.push_back(1);
    score_token_.push_back(job.tokens[chunk.position + row + 1]);
    score_top_ = std::max(score_top_, job.request.prompt_logprobs);
    params_.emplace_back();
  }
  if (chunk.samples) {
    logit_row_.push_back(first + chunk.rows - 1);
    scores_.push_back(0);
    score_token_.push_back(0);
    backend::SampleParams params = job.sample_params(chunk);
    params.edit_begin = static_cast<int32_t>(edits_.size());
    params.edit_count = job.edits.append(chunk.output_index, edits_);
    params_.push_back(params);
  }
  const size_t table = static_cast<size_t>(sequence) * table_stride_;
  std::copy(job.pages.begin(), job.pages.end(), pages_.begin() + static_cast<ptrdiff_t>(table));
}

template <typename T>
size_t StepRunner::place(const std::vector<T>& values) {
  const size_t at = packed_.size();
  packed_.resize(at + aligned(values.size() * sizeof(T)));
  if (!values.empty()) std::memcpy(packed_.data() + at, values.data(), values.size() * sizeof(T));
  return at;
}

/// Fills the host copies of a step's arrays, and lays them out one behind the other; where each
/// lies depends only on the step's shape, so that a recorded step can be replayed.
void StepRunner::pack(const StepPlan& plan) {
  for (auto* values : {&token_, &position_, &sequence_, &point_, &chunk_begin_, &logit_row_,
                       &score_token_, &pages_})
    values->clear();
  params_.clear();
  edits_.clear();
  scores_.clear();
  packed_.clear();
  score_top_ = 0;
  size_t longest = 1;
  for (const StepChunk& chunk : plan.chunks)
    longest = std::max(longest, chunk.sequence->pages.size());
  table_stride_ = static_cast<int>(std::bit_ceil(longest));
  pages_.resize(plan.chunks.size() * table_stride_);
  for (size_t i = 0; i < plan.chunks.size(); ++i) pack_chunk(plan.chunks[i], static_cast<int>(i));
  chunk_begin_.push_back(plan.rows);

  auto* const base = arrays_.as<std::byte>();
  const auto placed = [&](const std::vector<int32_t>& values) {
    return reinterpret_cast<int32_t*>(base + place(values));
  };
  batch_ = {};
  batch_.rows = plan.rows;
  batch_.sequences = static_cast<int>(plan.chunks.size());
  batch_.prefill_rows = plan.rows - plan.planned_rows;
  batch_.token = placed(token_);
  batch_.position = placed(position_);
  batch_.sequence = placed(sequence_);
  batch_.point = placed(point_);
  batch_.chunk_begin = placed(chunk_begin_);
  if (planner_.neurons() != nullptr) batch_.neuron_point = planner_.neurons()->common_point(point_);
  batch_.logit_row = placed(logit_row_);
  batch_.logit_rows = static_cast<int>(logit_row_.size());
  score_token_at_ = place(score_token_);
  params_at_ = place(params_);
  batch_.table_stride = table_stride_;
  const size_t pages_at = packed_.size();
  batch_.pages = placed(pages_);
  const size_t lists_at = pages_at + pages_.size() * sizeof(int32_t);
  POLAR_CHECK(packed_.size() <= arrays_.bytes());
  batch_.list_capacity = planner_.selects_pages() ? plan.planned_rows * kv_.kv_heads *
                                                        backend::list_entries(table_stride_)
                                                  : 0;
  POLAR_CHECK(lists_at + batch_.list_capacity * sizeof(int32_t) <= arrays_.bytes());
}

void StepRunner::upload() {
  device_.upload(arrays_.data(), packed_.data(), packed_.size());
  if (edits_.empty()) return;
  const size_t bytes = edits_.size() * sizeof(backend::LogitEdit);
  if (bytes > edits_buffer_.bytes()) {
    device_.synchronize();  // nothing may still read the old buffer
    auto larger = device_.allocate(2 * bytes, "a step's logit edits");
    POLAR_CHECK(larger.ok());
    edits_buffer_ = std::move(larger).value();
    ++edits_epoch_;
  }
  device_.upload(edits_buffer_.data(), edits_.data(), bytes);
}

std::unique_ptr<OpenStep> StepRunner::queue(StepPlan plan) {
  auto step = std::make_unique<OpenStep>();
  step->plan = std::move(plan);
  pack(step->plan);
  upload();
  const bool decode_only = batch_.prefill_rows == 0 && batch_.sequences == batch_.rows &&
                           batch_.logit_rows == batch_.rows;
  const bool traced =
      std::any_of(step->plan.chunks.begin(), step->plan.chunks.end(), [](const StepChunk& chunk) {
        const Job& job = static_cast<const Job&>(*chunk.sequence);
        return chunk.planned && job.request.trace;
      });
  model::NeuronPlanner* const neurons = planner_.neurons();
  if (traced) {
    TracingPlanner tracing(timed_, step->units);  // copies elsewhere each time: no replay
    run(tracing);
  } else if (decode_only && (neurons == nullptr || neurons->on_device())) {
    const uint64_t key = (edits_epoch_ << 48) ^ (static_cast<uint64_t>(batch_.neuron_point) << 40) ^
                         (static_cast<uint64_t>(table_stride_) << 16) ^
                         static_cast<uint64_t>(batch_.rows);
    replay_.run(key, neurons, [&] { run(timed_); });
  } else {
    run(timed_);
  }
  step->sampled.resize(batch_.logit_rows);
  step->read.resize(batch_.planned_rows());
  if (!step->sampled.empty()) {
    device_.download_later(step->sampled.data(), sampled_.data(),
                           step->sampled.size() * sizeof(backend::Sampled));
  }
  if (!step->read.empty()) {
    device_.download_later(step->read.data(), decoder_->read_counts(),
                           step->read.size() * sizeof(backend::ReadCount));
  }
  step->mark = device_.mark();
  return step;
}

void StepRunner::run(model::Planner& planner) {
  float* const logits = decoder_->forward(batch_, kv_, planner, last_token_.as<int32_t>());
  // Runs of rows that score and runs of rows that sample, each with its verb.
  const int rows = batch_.logit_rows;
  for (int begin = 0; begin < rows;) {
    int end = begin + 1;
    while (end < rows && scores_[end] == scores_[begin]) ++end;
    float* const first = logits + static_cast<size_t>(begin) * weights_.config.vocabulary;
    auto* const out = sampled_.as<backend::Sampled>() + begin;
    auto* const base = arrays_.as<std::byte>();
    if (scores_[begin] != 0) {
      const auto* tokens = reinterpret_cast<const int32_t*>(base + score_token_at_) + begin;
      device_.ops().score(
          {first, end - begin, weights_.config.vocabulary, tokens, score_top_, out});
    } else {
      const auto* params =
          reinterpret_cast<const backend::SampleParams*>(base + params_at_) + begin;
      device_.ops().sample({first, end - begin, weights_.config.vocabulary, params,
                            edits_buffer_.as<backend::LogitEdit>(), last_token_.as<int32_t>(),
                            out});
    }
    begin = end;
  }
}

}  // namespace polar::engine
