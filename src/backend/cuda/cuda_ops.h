#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "backend/cuda/cublas_products.h"
#include "backend/cuda/kernels.h"
#include "backend/ops.h"
#include "backend/step.h"

namespace polar::backend::cuda {

class CudaDevice;
struct PlanLaunch;
struct Schedule;

class CudaOps : public Ops {
 public:
  CudaOps(CudaDevice& device, const CublasLibrary& library);
  ~CudaOps() override;

  void embed(const EmbedArgs& args) override;
  void norm(const NormArgs& args) override;
  void qkv(const QkvArgs& args) override;
  void plan(const PlanArgs& args) override;
  void attention(const AttentionArgs& args) override;
  void linear(const LinearArgs& args) override;
  void neurons(const NeuronArgs& args) override;
  void mlp(const MlpArgs& args) override;
  void head(const HeadArgs& args) override;
  void sample(const SampleArgs& args) override;
  void score(const ScoreArgs& args) override;

  /// The memory that begins at `data` was written by a copy: what was derived from it (a bias in
  /// bf16, a schedule) is stale.
  void changed(const void* data);
  /// The memory that begins at `data` is about to be freed.
  void forget(const void* data);

 private:
  enum class Product : uint8_t { kPlain, kOfMlp, kActivated, kGatherUp, kGatherDown };
  using Choice = std::tuple<Product, ProductShape>;
  using Way = std::function<void(const void* weight)>;
  /// large_tiles: those of wide_product.cu may serve. They stream the weight past the cache, after
  /// which attention takes longer than they save, so only the MLP has them.
  void product(const void* x, int64_t x_stride, int rows, const Weight& weight, const float* bias,
               bool relu, void* y, int64_t y_stride, bool f32, bool large_tiles = false);
  /// act(first half) (* second half, if gated) of x up^T.
  void activated_product(const MlpArgs& args);
  /// One way for each cut of the own kernels.
  void add_ways(std::vector<Way>& ways, const SkinnyLaunch& launch) const;
  void add_ways(std::vector<Way>& ways, const GatherDownLaunch& launch) const;
  /// The same for large tiles.
  void add_wide_ways(std::vector<Way>& ways, const SkinnyLaunch& launch, bool by_outputs) const;
  /// The fastest of some ways to the same product, found once, in steps that are recorded next
  /// (others have as many numbers of rows as there are prompts); of ways that take as long the one
  /// of the fewest nodes.
  void fastest(const Choice& key, const void* weight, const std::vector<Way>& ways);
  /// Microseconds of one of several trials, each behind what empties the cache and a small kernel,
  /// and a trial's other nodes.
  std::pair<float, size_t> try_way(int rows, const std::function<void()>& way);
  const void* bias_in_bf16(const float* bias, int count);
  void* attention_scratch(int units, int group, int head_dim);
  const float* router_logits(const PlanArgs& args);
  /// Plans a layer in which units choose among their pages. `writes_index`: also those of the pages
  /// that the rows fill.
  void choose_pages(const PlanArgs& args, const PlanLaunch& plan, bool writes_index);
  /// Memory for the schedule of the layer at hand.
  Schedule schedule_for(int units);
  /// Queues the indices of the pages that rows [first, first + rows) fill, where there are indices.
  void write_page_index(const Batch& batch, const KvView& kv, int layer, int first, int rows);
  void sparse_mlp(const MlpArgs& args);

  /// What a dense plan depends on: layers of one step that agree share its schedule.
  struct DensePlan {
    const int32_t* position = nullptr;
    int rows = 0, kv_heads = 0, stride = 0, window = 0;
    const PageRanges* units = nullptr;
    bool operator==(const DensePlan&) const = default;
  };

  /// A layer's plan of its own, inside a graph.
  struct LayerPlan {
    int units = 0;
    PageRanges* ranges = nullptr;
    void* schedule = nullptr;
    cudaEvent_t done = nullptr;
  };

  /// Writes a plan beside what the stream does: only router logits tie it to its layer, so that
  /// most plans of a step are written while its first layers run.
  const LayerPlan& plan_beside(int layer, PlanLaunch plan);
  /// Counts what the layers read that shared the last dense plan.
  void count_layers(int rows, int kv_heads);

  /// Memory that grows to what was wanted most, and stays where graphs that use it were recorded.
  struct Grown {
    void* data = nullptr;
    size_t bytes = 0;
    void* at_least(CudaDevice& device, size_t wanted);
  };

  CudaDevice& device_;
  DensePlan dense_plan_;
  CublasProducts cublas_;
  void* workspace_ = nullptr;    // of cuBLASLt
  void* trial_bytes_ = nullptr;  // what trials read to empty the cache
  cudaEvent_t trial_begin_ = nullptr, trial_end_ = nullptr;
  ProductLimits limits_;
  uint32_t* next_tile_ = nullptr;  // of prefill attention
  int shares_ = 0;
  std::map<Choice, int> chosen_;
  std::map<const float*, void*> biases_;
  std::map<std::tuple<int, int, int>, void*> attention_scratch_;
  void* schedule_ = nullptr;
  int schedule_units_ = 0;
  const PageRanges* scheduled_ = nullptr;  // the plan that the schedule was made from
  std::vector<LayerPlan> layer_plans_;
  const LayerPlan* beside_ = nullptr;  // what the next attention reads, if it was planned beside
  cudaStream_t plan_stream_ = nullptr;
  cudaEvent_t plan_inputs_ = nullptr;  // the step's arrays, or a layer's router logits, are there
  bool plans_began_ = false;           // plan_stream_ waited for the step's arrays
  ReadPlan uncounted_;                 // a dense plan that layers share,
  bool shares_plan_ = false;           // the attention to come reads a plan of a layer before
  int uncounted_layers_ = 0;           // and how many of them have not been counted
  Grown router_logits_, page_scores_, embedded_;
  Grown narrow_, neuron_logits_, neuron_keys_;  // of neuron routers
};

}  // namespace polar::backend::cuda
