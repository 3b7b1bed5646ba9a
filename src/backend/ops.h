#pragma once
// The verbs of a step, at fused granularity. Each takes one plain struct, so that a new feature is
// a field and not a verb. All pointers are device memory; activations have DeviceInfo::activation
// as their type. A slow, obvious reference of each verb lives in the tests.

#include "backend/device.h"
#include "backend/neuron_choice.h"
#include "backend/step.h"
#include "core/tensor.h"

namespace polar::backend {

enum class NormKind : uint8_t { kLayer, kRms };
enum class Activation : uint8_t { kRelu, kSilu, kGelu, kGeluTanh };

struct Norm {
  NormKind kind = NormKind::kRms;
  float epsilon = 1e-5f;
  const float* weight = nullptr;  // [hidden]; null: no norm, the input passes through
  const float* bias = nullptr;    // [hidden] or null
};

/// Rotary embedding of a row at position p: pair i is turned by p * inverse_frequency[i] and scaled
/// by `scale`.
struct Rope {
  int dim = 0;  // rotated dimensions of a head; 0: none
  bool interleaved =
      false;  // pairs (2i, 2i+1) as GGUF stores LLaMA; else (i, i + dim/2) as Hugging Face does
  float scale = 1.0f;                        // yarn's attention factor
  const float* inverse_frequency = nullptr;  // [dim / 2]
};

/// hidden[row] = table[token[row]] (+ positions[position[row] + offset]); and the row's rotary
/// angles, once for all layers.
struct EmbedArgs {
  const Batch* batch = nullptr;
  const int32_t* last_token =
      nullptr;                    // [slots] what each slot sampled last, for tokens given as ~slot
  const Weight* table = nullptr;  // [vocabulary][embedding]
  const Weight* positions = nullptr;   // [positions][hidden], learned; or null
  int position_offset = 0;             // OPT: 2
  const Weight* projection = nullptr;  // [hidden][embedding] (OPT-350m), or null
  Rope rope;
  Tensor hidden;              // [rows][hidden] out
  float* rotation = nullptr;  // [rows][dim / 2][cos, sin] out, if rope.dim
};

/// residual += add (if given); out = norm(residual). `out` may be `residual` (post-norm models).
struct NormArgs {
  Tensor residual;  // [rows][hidden]
  Tensor add;       // [rows][hidden] of residual's type, or empty
  Norm norm;
  Tensor out;  // [rows][hidden]
};

/// query, K and V = x W^T + bias; QK-norm; rotation; K and V stored into the rows' page slots.
struct QkvArgs {
  const Batch* batch = nullptr;
  Tensor x;                        // [rows][hidden]
  const Weight* weight = nullptr;  // [(heads + 2 kv_heads) head_dim][hidden]
  const float* bias = nullptr;     // [(heads + 2 kv_heads) head_dim] or null
  Norm query_norm, key_norm;       // per head over head_dim (Qwen3)
  Rope rope;
  const float* rotation = nullptr;  // from EmbedArgs
  KvView kv;
  int layer = 0;
  int heads = 0;
  Tensor query;    // [rows][heads][head_dim] out
  Tensor scratch;  // [rows][(heads + 2 kv_heads) head_dim]
};

/// Fills the plan of one layer from the budgets of each planned row's operating point.
///
/// kRouted: of a row's routed units, the PointLimits::routed ones with the largest router logits
/// are full, the others fall back (ties: the lower head). kPages: a unit's candidates are its full
/// pages between the sink and the newest; each query head's scores (KvView::page_score) are
/// normalised by a softmax over them and added up over the group, and the best ones are read (ties:
/// the lower page; page_choice() in ranges.h says how many). The lists are written behind the page
/// tables, Batch::list_capacity / units entries for each unit.
struct PlanArgs {
  const Batch* batch = nullptr;
  KvView kv;
  int layer = 0;
  int window = 0;  // the model's own sliding window in tokens; 0: none
  const UnitBudget* budgets =
      nullptr;  // [points][kv_heads] of this layer; null: every unit is full
  const PointLimits* limits = nullptr;  // [points]
  int heads = 0;                        // query heads, for page scores
  float scale = 1.0f;                   // of the scores, as in AttentionArgs
  Tensor query;                         // [rows][heads][head_dim]; empty: no unit chooses pages
  Tensor x;                             // [rows][hidden]: the routers' input (kRouted)
  const Weight* router = nullptr;       // [kv_heads][hidden], or null: no unit is routed
  const float* router_bias = nullptr;   // [kv_heads] or null
  ReadPlan plan;
};

/// Softmax attention over pages. Prefill rows read all positions up to their own; planned rows read
/// their plan. All query heads of a KV head share one read.
struct AttentionArgs {
  const Batch* batch = nullptr;
  KvView kv;
  int layer = 0;
  int heads = 0;
  int window = 0;      // sliding window in tokens: position p sees (p - window, p]; 0: none
  float scale = 1.0f;  // of the scores, usually head_dim^-1/2
  const ReadPlan* plan = nullptr;
  Tensor query;   // [rows][heads][head_dim]
  Tensor output;  // [rows][heads][head_dim] out
};

/// y = x W^T + bias.
struct LinearArgs {
  Tensor x;                        // [rows][columns]
  const Weight* weight = nullptr;  // [outputs][columns]
  const float* bias = nullptr;     // [outputs] or null
  Tensor y;                        // [rows][outputs] out
};

/// The neurons that an MLP computes for these rows, by its router: logits = wide (narrow x) + bias,
/// in units of `unit`; the `count` best by union_scores() (ties: the lower neuron).
struct NeuronArgs {
  Tensor x;                        // [rows][hidden]: what the MLP reads
  const Weight* narrow = nullptr;  // [rank][hidden], or null: `wide` reads x itself
  const Weight* wide = nullptr;    // [ffn][rank or hidden]
  const float* bias = nullptr;     // [ffn] or null
  float unit = 1.0f;
  UnionBy by = UnionBy::kSum;  // not kRows
  Tensor scratch;              // [rows][ffn]
  int count = 0;               // at most ffn
  int32_t* index = nullptr;    // [count] out, ascending
};

/// y = W_down a + b_down with a = act(W_up x + b_up), or act(W_gate x) * (W_up x) when gated (then
/// `up` stacks gate over up).
struct MlpArgs {
  Tensor x;                    // [rows][hidden]
  const Weight* up = nullptr;  // [ffn][hidden] or [2 ffn][hidden]
  const float* up_bias = nullptr;
  const Weight* down = nullptr;  // [hidden][ffn]
  const float* down_bias = nullptr;
  Activation activation = Activation::kSilu;
  bool gated = false;
  const NeuronSet* neurons = nullptr;  // null: all
  Tensor scratch;                      // [rows][ffn] or [rows][2 ffn]
  Tensor y;                            // [rows][hidden] out
};

/// logits[l] = W norm(hidden[logit_row[l]]), always f32.
struct HeadArgs {
  const Batch* batch = nullptr;
  Tensor hidden;  // [rows][hidden], the residual stream
  Tensor add;     // [rows][hidden] added first, or empty
  Norm norm;
  const Weight* projection = nullptr;  // [embedding][hidden] (OPT-350m), or null
  const Weight* weight = nullptr;      // [vocabulary][embedding]
  Tensor scratch;                      // [logit rows][hidden + embedding]
  float* logits = nullptr;             // [logit rows][vocabulary] out
};

/// How one sequence samples. Temperature 0 is greedy. Filters apply in this order: penalties and
/// bias, temperature, top-k, top-p, min-p.
struct SampleParams {
  float temperature = 0.0f;
  int32_t top_k = 0;  // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // over prompt and output, as transformers defines it
  float presence_penalty = 0.0f;    // over output, as OpenAI defines it
  float frequency_penalty = 0.0f;
  uint64_t seed = 0;
  int32_t step =
      0;  // how many tokens this sequence has sampled: (seed, step) names the random number
  int32_t slot = 0;       // last_token[slot] receives the token
  int32_t logprobs = -1;  // alternatives to report; -1: none, 0: the token's own alone
  int32_t edit_begin = 0, edit_count = 0;  // this row's LogitEdits
};

/// One sparse change to a row's logits, made by the host from penalties and biases it knows.
struct LogitEdit {
  int32_t token = 0;
  float add = 0.0f;
  int32_t repeated = 0;      // in prompt or output: repetition_penalty applies
  int32_t output_count = 0;  // times in the output: presence and frequency penalties apply
};

inline constexpr int kMaxTopLogprobs = 20;

/// What sampling reports of one row.
struct Sampled {
  int32_t token = 0;
  float logprob = 0.0f;  // natural, of the unfiltered distribution
  int32_t top_count = 0;
  int32_t top_token[kMaxTopLogprobs];
  float top_logprob[kMaxTopLogprobs];
};

struct SampleArgs {
  float* logits = nullptr;  // [rows][vocabulary]
  int rows = 0;
  int vocabulary = 0;
  const SampleParams* params = nullptr;  // [rows]
  const LogitEdit* edits = nullptr;
  int32_t* last_token = nullptr;  // [slots]
  Sampled* sampled = nullptr;     // [rows] out
};

/// The natural log-probability of given tokens, and the likeliest alternatives: for scoring texts.
struct ScoreArgs {
  const float* logits = nullptr;  // [rows][vocabulary]
  int rows = 0;
  int vocabulary = 0;
  const int32_t* token = nullptr;  // [rows] whose log-probability is wanted
  int top = 0;                     // alternatives, at most kMaxTopLogprobs
  Sampled* scored = nullptr;       // [rows] out
};

class Ops {
 public:
  virtual ~Ops() = default;
  virtual void embed(const EmbedArgs& args) = 0;
  virtual void norm(const NormArgs& args) = 0;
  virtual void qkv(const QkvArgs& args) = 0;
  virtual void plan(const PlanArgs& args) = 0;
  virtual void attention(const AttentionArgs& args) = 0;
  virtual void linear(const LinearArgs& args) = 0;
  virtual void neurons(const NeuronArgs& args) = 0;
  virtual void mlp(const MlpArgs& args) = 0;
  virtual void head(const HeadArgs& args) = 0;
  virtual void sample(const SampleArgs& args) = 0;
  virtual void score(const ScoreArgs& args) = 0;
};

}  // namespace polar::backend
