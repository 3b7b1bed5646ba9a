#include "model/decoder.h"

#include "core/error.h"

namespace polar::model {

using backend::Batch;
using backend::KvView;

backend::AttentionArgs LayerContext::attention() const {
  backend::AttentionArgs args;
  args.batch = &batch;
  args.kv = kv;
  args.layer = layer;
  args.heads = config.heads;
  args.window = config.sliding_window[layer];
  args.scale = config.attention_scale();
  args.plan = &plan;
  args.query = query;
  args.output = output;
  return args;
}

namespace {

/// A row of a matrix, as a matrix.
Tensor row_of(const Tensor& matrix, int row) {
  const size_t bytes = dtype_bytes(matrix.dtype, static_cast<size_t>(matrix.shape[1]));
  return {static_cast<std::byte*>(matrix.data) + row * bytes,
          matrix.dtype,
          {1, matrix.shape[1], 1, 1},
          2};
}

}  // namespace

void DensePlanner::plan(const LayerContext& context) {
  backend::PlanArgs args;
  args.batch = &context.batch;
  args.kv = context.kv;
  args.layer = context.layer;
  args.window = context.config.sliding_window[context.layer];
  args.plan = context.plan;
  context.device.ops().plan(args);
}

const backend::NeuronSet* NeuronPlanner::plan(const MlpContext& context) {
  const backend::NeuronSet* set = choose(context);
  counts_.computed += set != nullptr ? set->count : context.config.ffn;
  counts_.all += context.config.ffn;
  return set;
}

void NeuronPlanner::count_dense(const ModelConfig& config) {
  counts_.computed += config.ffn;
  counts_.all += config.ffn;
}

void StepReplay::run(uint64_t key, NeuronPlanner* neurons, const std::function<void()>& step) {
  if (neurons == nullptr) return device_.replay(key, step);
  const NeuronPlanner::Counts before = neurons->counts();
  device_.replay(key, step);
  const NeuronPlanner::Counts asked = neurons->counts().since(before);
  if (asked.all > 0) {
    recorded_[key] = asked;
  } else {
    neurons->count(recorded_[key]);
  }
}

Decoder::Decoder(backend::Device& device, const Weights& weights, DecoderLimits limits)
    : device_(device),
      weights_(weights),
      limits_(limits),
      activation_(device.info().activation),
      // Products of post-norm models read the residual stream itself.
      residual_type_(weights.config.norm_after ? activation_ : device.info().residual) {}

Result<std::unique_ptr<Decoder>> Decoder::create(backend::Device& device, const Weights& weights,
                                                 DecoderLimits limits) {
  POLAR_CHECK(limits.rows > 0 && limits.logit_rows > 0);
  std::unique_ptr<Decoder> decoder(new Decoder(device, weights, limits));
  POLAR_RETURN_IF_ERROR(decoder->allocate());
  return decoder;
}

Status Decoder::allocate() {
  const ModelConfig& config = weights_.config;
  const size_t activation = dtype_info(activation_).block_bytes,
               residual = dtype_info(residual_type_).block_bytes;
  const size_t rows = limits_.rows;
  const size_t hidden = config.hidden;
  const size_t query_width = config.query_width();
  const size_t kv_width = config.kv_width();
  const struct {
    backend::Buffer* buffer;
    size_t bytes;
  } wanted[] = {
      {&residual_, rows * hidden * residual},
      {&normed_, rows * hidden * activation},
      {&delta_, rows * hidden * residual},
      {&query_, rows * query_width * activation},
      {&attention_, rows * query_width * activation},
      {&qkv_scratch_, rows * (query_width + 2 * kv_width) * activation},
      {&mlp_scratch_, rows * config.ffn * (config.gated ? 2 : 1) * activation},
      {&head_scratch_, limits_.logit_rows * (hidden + config.embedding) * activation},
      {&logits_, static_cast<size_t>(limits_.logit_rows) * config.vocabulary * sizeof(float)},
      {&rotation_, rows * config.rope.dim * sizeof(float)},
      {&units_, rows * config.kv_heads * sizeof(backend::PageRanges)},
      {&read_, rows * sizeof(backend::ReadCount)},
  };
  for (const auto& [buffer, bytes] : wanted) {
    if (bytes == 0) continue;
    POLAR_ASSIGN(*buffer,
                 device_.allocate(bytes, "activations (fewer rows per step: --max-batch)"));
  }
  return {};
}

Tensor Decoder::view(const backend::Buffer& buffer, int rows, int64_t width) const {
  return Tensor{buffer.data(), activation_, {rows, width, 1, 1}, 2};
}

Tensor Decoder::stream(const backend::Buffer& buffer, int rows) const {
  return Tensor{buffer.data(), residual_type_, {rows, weights_.config.hidden, 1, 1}, 2};
}

/// The last half's result, if no norm has added it to the residual stream yet.
Tensor Decoder::take_pending(int rows) {
  if (!pending_add_) return {};
  pending_add_ = false;
  return stream(delta_, rows);
}

Tensor Decoder::hidden(int rows) {
  const Tensor residual = stream(residual_, rows);
  if (const Tensor add = take_pending(rows); add.data != nullptr) {
    device_.ops().norm({residual, add, {}, residual});
  }
  return residual;
}

const backend::ReadCount* Decoder::read_counts() const {
  return read_.as<backend::ReadCount>();
}

float* Decoder::forward(const Batch& batch, const KvView& kv, Planner& planner,
                        const int32_t* last_token) {
  embed(batch, last_token);
  for (int layer = 0; layer < weights_.config.layers; ++layer) {
    attention_half(layer, batch, kv, planner);
    mlp_half(layer, batch, planner.neurons());
  }
  return head(batch);
}

void Decoder::embed(const Batch& batch, const int32_t* last_token) {
  POLAR_CHECK(batch.rows > 0 && batch.rows <= limits_.rows &&
              batch.logit_rows <= limits_.logit_rows);
  const ModelConfig& config = weights_.config;
  pending_add_ = false;
  if (batch.planned_rows() > 0)
    device_.fill_zero(read_.data(), batch.planned_rows() * sizeof(backend::ReadCount));
  backend::EmbedArgs args;
  args.batch = &batch;
  args.last_token = last_token;
  args.table = weights_.token_embedding.get();
  args.positions = weights_.position_embedding.get();
  args.position_offset = config.position_offset;
  args.projection = weights_.project_in.get();
  args.rope = weights_.rope;
  args.hidden = stream(residual_, batch.rows);
  args.rotation = rotation_.as<float>();
  device_.ops().embed(args);
}

void Decoder::attention_half(int layer, const Batch& batch, const KvView& kv, Planner& planner) {
  const ModelConfig& config = weights_.config;
  const LayerWeights& w = weights_.layers[layer];
  backend::Ops& ops = device_.ops();
  const Tensor residual = stream(residual_, batch.rows);
  const Tensor normed =
      config.norm_after ? hidden(batch.rows) : view(normed_, batch.rows, config.hidden);
  if (!config.norm_after) ops.norm({residual, take_pending(batch.rows), w.attention_norm, normed});

  const Tensor query = view(query_, batch.rows, config.query_width());
  const Tensor output = view(attention_, batch.rows, config.query_width());
  backend::QkvArgs qkv;
  qkv.batch = &batch;
  qkv.x = normed;
  qkv.weight = w.qkv.get();
  qkv.bias = w.qkv_bias;
  qkv.query_norm = w.query_norm;
  qkv.key_norm = w.key_norm;
  qkv.rope = weights_.rope;
  qkv.rotation = rotation_.as<float>();
  qkv.kv = kv;
  qkv.layer = layer;
  qkv.heads = config.heads;
  qkv.query = query;
  qkv.scratch = view(qkv_scratch_, batch.rows, config.query_width() + 2 * config.kv_width());
  ops.qkv(qkv);

  const LayerContext context{
      device_, config, layer,
      batch,   kv,     normed,
      query,   output, {units_.as<backend::PageRanges>(), read_.as<backend::ReadCount>()}};
  if (batch.planned_rows() > 0) planner.plan(context);
  ops.attention(context.attention());

  const Tensor delta = stream(delta_, batch.rows);
  ops.linear({output, w.output.get(), w.output_bias, delta});
  pending_add_ = true;
  if (config.norm_after) ops.norm({residual, take_pending(batch.rows), w.attention_norm, residual});
}

void Decoder::mlp_half(int layer, const Batch& batch, NeuronPlanner* neurons) {
  const ModelConfig& config = weights_.config;
  const LayerWeights& w = weights_.layers[layer];
  backend::Ops& ops = device_.ops();
  const Tensor residual = stream(residual_, batch.rows);
  const Tensor normed =
      config.norm_after ? hidden(batch.rows) : view(normed_, batch.rows, config.hidden);
  if (!config.norm_after) ops.norm({residual, take_pending(batch.rows), w.mlp_norm, normed});

  mlp(layer, batch, neurons, normed);
  pending_add_ = true;
  if (config.norm_after) ops.norm({residual, take_pending(batch.rows), w.mlp_norm, residual});
}

/// The MLP of normed [rows][hidden] into `delta_`, of all neurons or of those that are chosen.
void Decoder::mlp(int layer, const Batch& batch, NeuronPlanner* neurons, const Tensor& normed) {
  const ModelConfig& config = weights_.config;
  const LayerWeights& w = weights_.layers[layer];
  backend::MlpArgs args;
  args.x = normed;
  args.up = w.up.get();
  args.up_bias = w.up_bias;
  args.down = w.down.get();
  args.down_bias = w.down_bias;
  args.activation = config.activation;
  args.gated = config.gated;
  args.scratch = view(mlp_scratch_, batch.rows, config.ffn * (config.gated ? 2 : 1));
  args.y = stream(delta_, batch.rows);
  const bool decodes = neurons != nullptr && batch.planned_rows() > 0;
  const bool asks = decodes && batch.prefill_rows == 0;
  if (decodes && !asks) neurons->count_dense(config);
  if (!(asks && neurons->rows_alone())) {
    if (asks)
      args.neurons = neurons->plan({device_, config, w, layer, batch, normed, args.scratch});
    device_.ops().mlp(args);
    return;
  }
  const backend::MlpArgs all = args;
  for (int row = 0; row < batch.rows; ++row) {
    Batch one = batch;
    one.rows = 1;
    one.point = batch.point + row;
    args.x = row_of(all.x, row);
    args.scratch = row_of(all.scratch, row);
    args.y = row_of(all.y, row);
    args.neurons = neurons->plan({device_, config, w, layer, one, args.x, args.scratch});
    device_.ops().mlp(args);
  }
}

float* Decoder::head(const Batch& batch) {
  const ModelConfig& config = weights_.config;
  backend::HeadArgs args;
  args.batch = &batch;
  args.hidden = stream(residual_, batch.rows);
  args.add = take_pending(batch.rows);
  args.norm = weights_.final_norm;
  args.projection = weights_.project_out.get();
  args.weight = &weights_.head();
  args.scratch = view(head_scratch_, batch.logit_rows, config.hidden + config.embedding);
  args.logits = logits_.as<float>();
  if (batch.logit_rows > 0) device_.ops().head(args);
  return logits_.as<float>();
}

}  // namespace polar::model
