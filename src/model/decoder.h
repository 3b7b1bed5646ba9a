#pragma once
// The one forward pass. Its halves are public, so that calibration drives it layer by layer from
// stored states, without hooks.

#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>

#include "backend/device.h"
#include "backend/ops.h"
#include "model/weights.h"

namespace polar::model {

/// What a planner sees of a layer, after K and V of all rows were stored and before attention runs.
struct LayerContext {
  backend::Device& device;
  const ModelConfig& config;
  int layer;
  const backend::Batch& batch;
  const backend::KvView& kv;
  Tensor normed;           // [rows][hidden]: what the QKV projection read, and what routers read
  Tensor query;            // [rows][heads][head_dim]
  Tensor output;           // [rows][heads][head_dim]: scratch until attention writes it
  backend::ReadPlan plan;  // to be filled for the planned rows

  /// The layer's attention over this plan, into `output`. Valid as long as the context is.
  backend::AttentionArgs attention() const;
};

/// What a neuron planner sees of a layer, before its MLP runs.
struct MlpContext {
  backend::Device& device;
  const ModelConfig& config;
  const LayerWeights& weights;
  int layer;
  const backend::Batch& batch;
  Tensor normed;   // [rows][hidden]: what the MLP reads, and what its router reads
  Tensor scratch;  // [rows][ffn]: free until the MLP runs
};

/// Decides which neurons of a ReLU model's MLPs are computed: one set for all rows of a step. Only
/// steps of planned rows alone ask; a step with prefill rows runs dense.
class NeuronPlanner {
 public:
  virtual ~NeuronPlanner() = default;

  /// Whether choosing only queues verbs, so that a step can be recorded and replayed
  /// (StepReplay).
  virtual bool on_device() const { return false; }

  /// Of the operating points of a step's rows, the one that wants the most neurons: what
  /// Batch::neuron_point must be.
  virtual int common_point(std::span<const int32_t> points) const {
    return points.empty() ? 0 : points[0];
  }

  /// The layer's neurons, or null: all of them. Valid until the next call.
  const backend::NeuronSet* plan(const MlpContext& context);

  /// Whether each row of a step chooses as if it were alone in it. So the rows of a text, scored
  /// many in a step, compute what decode steps at batch 1 do. Off at first.
  void set_rows_alone(bool alone) { rows_alone_ = alone; }
  bool rows_alone() const { return rows_alone_; }

  /// Counts a layer that ran dense without being asked.
  void count_dense(const ModelConfig& config);

  /// What all steps with planned rows so far computed, and read to decide it.
  struct Counts {
    int64_t computed = 0, all = 0;  // neurons
    double router_bytes = 0;

    /// Neurons computed over all neurons: a ratio of sums.
    double share() const {
      return all > 0 ? static_cast<double>(computed) / static_cast<double>(all) : 1.0;
    }
    Counts since(const Counts& before) const {
      return {computed - before.computed, all - before.all, router_bytes - before.router_bytes};
    }
  };
  const Counts& counts() const { return counts_; }
  /// Counts a step that was replayed, so that nobody was asked.
  void count(const Counts& step) {
    counts_.computed += step.computed;
    counts_.all += step.all;
    counts_.router_bytes += step.router_bytes;
  }
  double share() const { return counts_.share(); }

 protected:
  virtual const backend::NeuronSet* choose(const MlpContext& context) = 0;
  void count_router(double bytes) { counts_.router_bytes += bytes; }

 private:
  Counts counts_;
  bool rows_alone_ = false;
};

/// Decides what a layer's attention reads. A profile's planner queues the plan verb; those of
/// studies may work on the host.
class Planner {
 public:
  virtual ~Planner() = default;
  virtual void plan(const LayerContext& context) = 0;
  /// Whether units choose among their pages, by page_score(): then the KvView has its indices, and
  /// the Batch room for lists.
  virtual bool selects_pages() const { return false; }
  virtual backend::PageScore page_score() const { return backend::PageScore::kMean; }
  /// Whether some units see pages by their summaries: then the KvView has them.
  virtual bool uses_summaries() const { return false; }
  /// Operating points that rows may name (Batch::point).
  virtual int points() const { return 1; }

  /// Who chooses neurons beside; null: the MLPs run dense.
  virtual NeuronPlanner* neurons() const { return neurons_.get(); }
  void set_neurons(std::unique_ptr<NeuronPlanner> neurons) { neurons_ = std::move(neurons); }

 private:
  std::unique_ptr<NeuronPlanner> neurons_;
};

/// Device::replay for steps that may choose neurons: what a recorded step chose counts again each
/// time that it is replayed.
class StepReplay {
 public:
  explicit StepReplay(backend::Device& device) : device_(device) {}
  /// `neurons`: who chooses in the step, on the device; or null.
  void run(uint64_t key, NeuronPlanner* neurons, const std::function<void()>& step);

 private:
  backend::Device& device_;
  std::unordered_map<uint64_t, NeuronPlanner::Counts> recorded_;
};

/// Every planned row reads every position up to its own.
class DensePlanner : public Planner {
 public:
  void plan(const LayerContext& context) override;
};

/// The largest step that a Decoder must hold.
struct DecoderLimits {
  int rows = 0;
  int logit_rows = 0;
};

class Decoder {
 public:
  /// Allocates the activations of the largest step. Device and weights must outlive the decoder.
  static Result<std::unique_ptr<Decoder>> create(backend::Device& device, const Weights& weights,
                                                 DecoderLimits limits);

  /// One whole step: returns the logits [batch.logit_rows][vocabulary], f32, on the device.
  /// `last_token` is [slots] (Batch::token), or null when no token is given by slot.
  float* forward(const backend::Batch& batch, const backend::KvView& kv, Planner& planner,
                 const int32_t* last_token);

  // The same step in its parts.
  void embed(const backend::Batch& batch, const int32_t* last_token);
  void attention_half(int layer, const backend::Batch& batch, const backend::KvView& kv,
                      Planner& planner);
  void mlp_half(int layer, const backend::Batch& batch, NeuronPlanner* neurons = nullptr);
  float* head(const backend::Batch& batch);

  /// The residual stream [rows][hidden] as it stands between the halves, complete: may be read and
  /// replaced.
  Tensor hidden(int rows);

  /// What each planned row read in the last step, summed over layers: device memory, [planned
  /// rows].
  const backend::ReadCount* read_counts() const;

  const Weights& weights() const { return weights_; }
  backend::Device& device() const { return device_; }

 private:
  Decoder(backend::Device& device, const Weights& weights, DecoderLimits limits);
  Status allocate();
  Tensor view(const backend::Buffer& buffer, int rows, int64_t width) const;
  /// [rows][hidden] of the residual stream, or of what is added to it.
  Tensor stream(const backend::Buffer& buffer, int rows) const;
  void mlp(int layer, const backend::Batch& batch, NeuronPlanner* neurons, const Tensor& normed);
  Tensor take_pending(int rows);

  backend::Device& device_;
  const Weights& weights_;
  DecoderLimits limits_;
  DType activation_;  // of other views; asking the device may cost a system call
  DType residual_type_;
  bool pending_add_ =
      false;  // the last half's result waits in `delta_` to be added by the next norm
  backend::Buffer residual_, normed_, delta_, query_, attention_, qkv_scratch_, mlp_scratch_,
      head_scratch_, logits_, rotation_, units_, read_;
};

}  // namespace polar::model
