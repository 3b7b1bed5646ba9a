#pragma once
// A KV cache for measurements: a fixed number of sequences, each with its own pages, and the arrays
// of one step. The engine's cache and scheduler are not needed to score texts or to time steps.

#include <memory>
#include <span>
#include <vector>

#include "backend/device.h"
#include "backend/step.h"
#include "model/config.h"
#include "model/decoder.h"

namespace polar::study {

/// The rows of one sequence in a step.
struct Chunk {
  int sequence = 0;  // which of the cache's sequences
  int position = 0;  // of its first row
  std::span<const int32_t> tokens;
  bool planned = false;  // rows are treated as decode steps, not as prefill
  int point = 0;         // operating point
};

/// What a cache holds beside the pages.
struct PageExtras {
  int choosing_rows = 0;  // planned rows of a step for which pages can be chosen; 0: none
  backend::PageScore page_score = backend::PageScore::kMean;
  bool summaries = false;
};

/// What a planner (null: the dense one) wants, in steps of that many planned rows.
PageExtras page_extras(const model::Planner* planner, int planned_rows);

class SequenceCache {
 public:
  /// `sequences` sequences of up to `length` tokens each. `shuffle_seed` other than 0 scatters the
  /// pages, as they are in a server that has run for a while.
  static Result<SequenceCache> create(backend::Device& device, const model::ModelConfig& config,
                                      DType kv_dtype, int sequences, int length,
                                      uint64_t shuffle_seed = 0, const PageExtras& extras = {});

  const backend::KvView& kv() const { return kv_; }
  int table_stride() const { return table_stride_; }

  /// Writes seeded normal values over all keys and values: for timing steps without prefilling.
  void fill_random(uint64_t seed);

  /// Builds a step's arrays on the device: prefill chunks first, then planned ones. Logits are
  /// wanted of `logit_rows` (indices into the packed rows). The Batch is valid until the next call.
  const backend::Batch& pack(std::span<const Chunk> chunks, std::span<const int32_t> logit_rows);

 private:
  SequenceCache() = default;
  void put(backend::Buffer& buffer, const std::vector<int32_t>& values);

  backend::Device* device_ = nullptr;
  backend::KvView kv_;
  backend::Buffer kv_buffer_, index_buffer_, summary_buffer_;
  std::vector<int32_t> page_of_;  // [sequence][table_stride]
  int sequences_ = 0;
  int table_stride_ = 0;
  int list_capacity_ = 0;
  backend::Batch batch_;
  backend::Buffer token_, position_, sequence_, point_, chunk_begin_, pages_, logit_row_;
  std::vector<int32_t> host_;
};

}  // namespace polar::study
