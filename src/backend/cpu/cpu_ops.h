#pragma once

#include <vector>

#include "backend/cpu/kernels.h"
#include "backend/ops.h"
#include "core/thread_pool.h"

namespace polar::backend::cpu {

/// The verbs on the CPU: f32 activations, weights as stored, results that do not depend on the
/// batch or on the threads.
class CpuOps : public Ops {
 public:
  CpuOps(const Kernels& kernels, ThreadPool& pool)
      : kernels_(kernels), pool_(pool), scratch_(pool.threads()), page_scratch_(pool.threads()) {}

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

 private:
  /// y [rows][y_stride] = x [rows][x_stride] W^T + bias, for the stored rows `index` [count] or all
  /// of them.
  void product(const float* x, int64_t x_stride, int rows, const Weight& weight, const float* bias,
               float* y, int64_t y_stride, const int32_t* index = nullptr, int64_t count = 0);
  /// The same for a weight that gathers: x [rows][x_stride] holds the neurons `index` [count] or
  /// all of them.
  void gathered_product(const float* x, int64_t x_stride, int rows, const Weight& weight,
                        const float* bias, float* y, const int32_t* index, int64_t count);
  void activate(const MlpArgs& args, int64_t width);
  void finish_pages(const QkvArgs& args);
  /// What a planned row's unit reads; `logits` [kv_heads] are the row's router outputs, or null.
  PageRanges unit_ranges(const PlanArgs& args, int planned, int kv_head, const float* logits,
                         int thread);
  /// The same for a unit that chooses among its pages.
  PageRanges chosen_pages(const PlanArgs& args, int planned, int kv_head, int thread);
  void attend_planned(const AttentionArgs& args);
  void attend_prefill(const AttentionArgs& args);

  /// At least `values` floats for a thread, kept between calls.
  float* scratch(int thread, size_t values);

  /// What choosing pages needs, for one thread.
  struct PageScratch {
    std::vector<const std::byte*> pages;
    std::vector<float> scores, mass;
  };

  const Kernels& kernels_;
  ThreadPool& pool_;
  std::vector<std::vector<float>> scratch_;  // [thread]
  std::vector<PageScratch> page_scratch_;    // [thread]
  std::vector<float> partials_;              // attention and gathered products
  std::vector<float> router_;                // [planned row][kv_heads] logits
  std::vector<std::byte> packed_;            // inputs of the product being computed
  std::vector<float> narrow_;                // [row][rank] of a neuron router
};

}  // namespace polar::backend::cpu
