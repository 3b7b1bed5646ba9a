#include "study/sequence_cache.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "backend/ranges.h"

namespace polar::study {

using backend::kPageTokens;

PageExtras page_extras(const model::Planner* planner, int planned_rows) {
  if (planner == nullptr) return {};
  return {planner->selects_pages() ? planned_rows : 0, planner->page_score(),
          planner->uses_summaries()};
}

Result<SequenceCache> SequenceCache::create(backend::Device& device,
                                            const model::ModelConfig& config, DType kv_dtype,
                                            int sequences, int length, uint64_t shuffle_seed,
                                            const PageExtras& extras) {
  POLAR_CHECK(sequences > 0 && length > 0);
  SequenceCache cache;
  cache.device_ = &device;
  cache.sequences_ = sequences;
  cache.table_stride_ = (length + kPageTokens - 1) / kPageTokens;
  cache.list_capacity_ =
      extras.choosing_rows * config.kv_heads * backend::list_entries(cache.table_stride_);
  cache.kv_ = {nullptr,         kv_dtype,       config.layers, sequences * cache.table_stride_,
               config.kv_heads, config.head_dim};
  POLAR_ASSIGN(cache.kv_buffer_,
               device.allocate(cache.kv_.total_bytes(),
                               "KV cache (smaller: --context, --batch or --max-model-len)"));
  cache.kv_.data = cache.kv_buffer_.as<std::byte>();
  if (extras.choosing_rows > 0) {
    cache.kv_.page_score = extras.page_score;
    POLAR_ASSIGN(cache.index_buffer_,
                 device.allocate(cache.kv_.indices_bytes() * cache.kv_.pages, "page scores"));
    if (cache.kv_.indices_bytes() > 0) cache.kv_.index = cache.index_buffer_.as<std::byte>();
  }
  if (extras.summaries) {
    POLAR_ASSIGN(cache.summary_buffer_,
                 device.allocate(cache.kv_.summaries_bytes() * cache.kv_.pages, "page summaries"));
    cache.kv_.summaries = cache.summary_buffer_.as<std::byte>();
  }
  cache.page_of_.resize(cache.kv_.pages);
  std::iota(cache.page_of_.begin(), cache.page_of_.end(), 0);
  if (shuffle_seed != 0) {
    std::shuffle(cache.page_of_.begin(), cache.page_of_.end(), std::mt19937_64(shuffle_seed));
  }
  return cache;
}

void SequenceCache::fill_random(uint64_t seed) {
  // One stretch of random values, repeated: a length that is no multiple of a block, so that no two
  // blocks are equal.
  constexpr size_t kValues = (1 << 20) + 8 * 1023;
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::byte> stretch(kValues * kv_.element_bytes());
  for (size_t i = 0; i < kValues; ++i) {
    const float value = normal(random);
    const uint16_t half = kv_.dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
    if (kv_.dtype == DType::kF32) {
      std::memcpy(stretch.data() + i * sizeof(value), &value, sizeof(value));
    } else {
      std::memcpy(stretch.data() + i * sizeof(half), &half, sizeof(half));
    }
  }
  const auto fill = [&](std::byte* data, size_t bytes) {
    for (size_t done = 0; done < bytes; done += stretch.size())
      device_->upload(data + done, stretch.data(), std::min(stretch.size(), bytes - done));
  };
  fill(kv_.data, kv_.total_bytes());
  // Not the indices and summaries of these keys, but as good for timing. Mean keys are 16-bit
  // values.
  if (kv_.index != nullptr && kv_.dtype != DType::kF32)
    fill(kv_.index, kv_.indices_bytes() * kv_.pages);
  if (kv_.summaries != nullptr) fill(kv_.summaries, kv_.summaries_bytes() * kv_.pages);
}

void SequenceCache::put(backend::Buffer& buffer, const std::vector<int32_t>& values) {
  const size_t bytes = std::max<size_t>(values.size(), 1) * sizeof(int32_t);
  if (buffer.bytes() < bytes) {
    auto allocated = device_->allocate(bytes, "a step's arrays");
    POLAR_CHECK(allocated.ok());
    buffer = std::move(allocated).value();
  }
  if (!values.empty())
    device_->upload(buffer.data(), values.data(), values.size() * sizeof(int32_t));
}

const backend::Batch& SequenceCache::pack(std::span<const Chunk> chunks,
                                          std::span<const int32_t> logit_rows) {
  std::vector<int32_t> token, position, sequence, point, chunk_begin, pages;
  int prefill_rows = 0;
  bool seen_planned = false;
  for (size_t c = 0; c < chunks.size(); ++c) {
    const Chunk& chunk = chunks[c];
    POLAR_CHECK(!(seen_planned && !chunk.planned));
    POLAR_CHECK(chunk.sequence < sequences_ && !chunk.tokens.empty());
    POLAR_CHECK(chunk.position + static_cast<int>(chunk.tokens.size()) <=
                table_stride_ * kPageTokens);
    seen_planned |= chunk.planned;
    chunk_begin.push_back(static_cast<int32_t>(token.size()));
    for (size_t i = 0; i < chunk.tokens.size(); ++i) {
      token.push_back(chunk.tokens[i]);
      position.push_back(chunk.position + static_cast<int32_t>(i));
      sequence.push_back(static_cast<int32_t>(c));
      point.push_back(chunk.point);
    }
    if (!chunk.planned) prefill_rows = static_cast<int>(token.size());
    const auto table = page_of_.begin() + static_cast<ptrdiff_t>(chunk.sequence) * table_stride_;
    pages.insert(pages.end(), table, table + table_stride_);
  }
  chunk_begin.push_back(static_cast<int32_t>(token.size()));
  pages.resize(pages.size() + list_capacity_);

  put(token_, token);
  put(position_, position);
  put(sequence_, sequence);
  put(point_, point);
  put(chunk_begin_, chunk_begin);
  put(pages_, pages);
  put(logit_row_, {logit_rows.begin(), logit_rows.end()});
  batch_.rows = static_cast<int>(token.size());
  batch_.sequences = static_cast<int>(chunks.size());
  batch_.prefill_rows = prefill_rows;
  batch_.token = token_.as<int32_t>();
  batch_.position = position_.as<int32_t>();
  batch_.sequence = sequence_.as<int32_t>();
  batch_.point = point_.as<int32_t>();
  batch_.chunk_begin = chunk_begin_.as<int32_t>();
  batch_.table_stride = table_stride_;
  batch_.pages = pages_.as<int32_t>();
  batch_.list_capacity = list_capacity_;
  batch_.logit_row = logit_row_.as<int32_t>();
  batch_.logit_rows = static_cast<int>(logit_rows.size());
  return batch_;
}

}  // namespace polar::study
