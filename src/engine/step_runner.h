#pragma once
// Runs the scheduler's steps on a device: packs their arrays, queues the decoder and the sampling,
// and reads the results when they are there.

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "backend/device.h"
#include "backend/ops.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "engine/timed_planner.h"
#include "model/decoder.h"

namespace polar::engine {

struct StepLimits {
  SchedulerLimits scheduler;
  DType kv_dtype = DType::kF16;
};

/// A queued step and, once it was read, its results.
struct OpenStep {
  StepPlan plan;
  uint64_t mark = 0;
  std::vector<backend::Sampled> sampled;   // [logit rows], in the order of the plan's rows
  std::vector<backend::ReadCount> read;    // [planned rows] over all layers and KV heads
  std::vector<backend::PageRanges> units;  // [layers][planned rows][KV heads] if one asked for it
};

class StepRunner {
 public:
  /// Device, weights and planner must outlive the runner.
  static Result<std::unique_ptr<StepRunner>> create(backend::Device& device,
                                                    const model::Weights& weights,
                                                    model::Planner& planner,
                                                    const StepLimits& limits);

  /// Queues a step whose sequences are Jobs. Steps run in the order of the calls.
  std::unique_ptr<OpenStep> queue(StepPlan plan);
  /// Waits until the step's results are there.
  void wait(const OpenStep& step) { device_.wait(step.mark); }

  /// Blocks (page, KV head) that a dense row at this position reads, over all layers.
  int32_t dense_blocks(int position) const;
  /// Adds what planned row `row` of a step read to a trace, unit by unit.
  void add_read(const OpenStep& step, int row, int position, ReadTrace& trace) const;
  const backend::KvView& kv() const { return kv_; }
  /// Time that all steps spent on plans (what to read), in seconds; nothing where it cannot be told
  /// on the host.
  std::optional<double> plan_seconds() const;

 private:
  StepRunner(backend::Device& device, const model::Weights& weights, model::Planner& planner,
             const StepLimits& limits);
  Status allocate();
  template <typename T>
  size_t place(const std::vector<T>& values);
  void pack(const StepPlan& plan);
  void pack_chunk(const StepChunk& chunk, int sequence);
  void upload();
  void run(model::Planner& planner);

  backend::Device& device_;
  const model::Weights& weights_;
  model::Planner& planner_;
  TimedPlanner timed_;
  model::StepReplay replay_;
  StepLimits limits_;
  std::unique_ptr<model::Decoder> decoder_;
  backend::KvView kv_;
  backend::Buffer kv_buffer_, index_buffer_, summary_buffer_, arrays_, edits_buffer_, last_token_,
      sampled_;
  uint64_t edits_epoch_ = 0;                  // how often edits_buffer_ has moved
  std::vector<std::pair<int, int>> windows_;  // sliding window, layers that have it

  // The step being packed: host copies, and where they lie in `arrays_`.
  std::vector<int32_t> token_, position_, sequence_, point_, chunk_begin_, logit_row_, score_token_,
      pages_;
  std::vector<backend::SampleParams> params_;
  std::vector<backend::LogitEdit> edits_;
  std::vector<char> scores_;  // [logit rows] whether the row scores a prompt token
  std::vector<std::byte> packed_;
  int table_stride_ = 0;
  int score_top_ = 0;
  backend::Batch batch_;
  size_t params_at_ = 0, score_token_at_ = 0;
};

}  // namespace polar::engine
