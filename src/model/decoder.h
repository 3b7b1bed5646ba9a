#pragma once
// The one forward pass. Its halves are public, so that calibration drives it layer by layer from
// stored states, without hooks.

#include <memory>

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
};

/// Decides what a layer's attention reads. A profile's planner queues the plan verb; those of
/// studies may work on the host.
class Planner {
 public:
  virtual ~Planner() = default;
  virtual void plan(const LayerContext& context) = 0;
  /// Whether units choose among their pages: then the KvView has mean keys, and the Batch room for
  /// lists.
  virtual bool selects_pages() const { return false; }
  /// Operating points that rows may name (Batch::point).
  virtual int points() const { return 1; }
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
  void mlp_half(int layer, const backend::Batch& batch);
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
  Tensor take_pending(int rows);

  backend::Device& device_;
  const Weights& weights_;
  DecoderLimits limits_;
  DType activation_;  // of all views; asking the device may cost a system call
  bool pending_add_ =
      false;  // the last half's result waits in `delta_` to be added by the next norm
  backend::Buffer residual_, normed_, delta_, query_, attention_, qkv_scratch_, mlp_scratch_,
      head_scratch_, logits_, rotation_, units_, read_;
};

}  // namespace polar::model
