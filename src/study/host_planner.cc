#include "study/host_planner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/device_values.h"
#include "backend/ranges.h"

namespace polar::study {

using backend::PageRanges;
using model::LayerContext;

namespace {

/// splitmix64: one step of a counter-based generator.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

void HostPlanner::begin_step(const LayerContext& context) {
  const backend::Batch& batch = context.batch;
  const int planned = batch.planned_rows();
  position_.resize(planned);
  table_begin_.resize(planned);
  context.device.download(position_.data(), batch.position + batch.prefill_rows,
                          planned * sizeof(int32_t));
  context.device.download(table_begin_.data(), batch.sequence + batch.prefill_rows,
                          planned * sizeof(int32_t));
  for (int32_t& begin : table_begin_) begin *= batch.table_stride;
  read_.assign(planned, {});
}

PageRanges HostPlanner::full(const LayerContext& context, int row) const {
  return backend::full_ranges(position_[row], context.config.sliding_window[context.layer],
                              table_begin_[row]);
}

PageRanges HostPlanner::fallback(const LayerContext& context, int row) const {
  if (policy_.fallback == Fallback::kNone) return {};
  return backend::window_ranges(position_[row], context.config.sliding_window[context.layer],
                                table_begin_[row], point_limits(policy_), policy_.summaries);
}

void HostPlanner::write(const LayerContext& context, const std::vector<PageRanges>& units) const {
  context.device.upload(context.plan.units, units.data(), units.size() * sizeof(PageRanges));
}

void HostPlanner::plan(const LayerContext& context) {
  if (context.layer == 0 || rows() != context.batch.planned_rows()) begin_step(context);
  const int heads = context.config.kv_heads;
  std::vector<char> keep(static_cast<size_t>(rows()) * heads, policy_.is_dense(context.layer));
  if (!policy_.is_dense(context.layer)) choose(context, keep);
  std::vector<PageRanges> units(keep.size());
  for (int row = 0; row < rows(); ++row) {
    for (int head = 0; head < heads; ++head) {
      const size_t unit = static_cast<size_t>(row) * heads + head;
      units[unit] = keep[unit] ? full(context, row) : fallback(context, row);
      read_[row].blocks += units[unit].count + units[unit].tail_count;
      read_[row].summaries += units[unit].summaries;
    }
  }
  write(context, units);
  context.device.upload(context.plan.read, read_.data(), read_.size() * sizeof(backend::ReadCount));
}

void RandomPlanner::choose(const LayerContext& context, std::vector<char>& keep) {
  const int heads = context.config.kv_heads;
  std::vector<int> order(heads);
  for (int row = 0; row < rows(); ++row) {
    std::iota(order.begin(), order.end(), 0);
    uint64_t state =
        mix(policy().seed) ^ mix((static_cast<uint64_t>(position(row)) << 20) + context.layer);
    state ^= static_cast<uint64_t>(full(context, row).tail_begin) << 32;  // tells sequences apart
    for (int i = 0; i < policy().kept(heads); ++i) {
      state = mix(state);
      std::swap(order[i], order[i + static_cast<int>(state % (heads - i))]);
      keep[static_cast<size_t>(row) * heads + order[i]] = 1;
    }
  }
}

/// Runs the layer's attention with every unit full, or every unit on its fallback; returns [planned
/// row][heads][head_dim].
std::vector<float> OraclePlanner::attend(const LayerContext& context, bool fall_back) {
  const int heads = context.config.kv_heads;
  std::vector<PageRanges> units(static_cast<size_t>(rows()) * heads);
  for (int row = 0; row < rows(); ++row) {
    const PageRanges ranges = fall_back ? fallback(context, row) : full(context, row);
    std::fill_n(units.begin() + static_cast<ptrdiff_t>(row) * heads, heads, ranges);
  }
  write(context, units);
  context.device.ops().attention(context.attention());
  std::vector<float> all = download_values(context.device, context.output);
  all.erase(all.begin(), all.begin() + static_cast<ptrdiff_t>(context.batch.prefill_rows) *
                                           context.config.query_width());
  return all;
}

double OraclePlanner::score(int layer, int unit, const float* values, int width) const {
  double sum = 0;
  if (policy().rank_by == RankBy::kNorm) {
    for (int i = 0; i < width; ++i) sum += static_cast<double>(values[i]) * values[i];
    return sum;
  }
  const std::vector<float>& gram =
      gram_[unit + static_cast<size_t>(layer) * (gram_.size() / layers_)];
  for (int i = 0; i < width; ++i) {
    float row = 0;
    for (int j = 0; j < width; ++j) row += gram[static_cast<size_t>(i) * width + j] * values[j];
    sum += static_cast<double>(row) * values[i];
  }
  return sum;
}

void OraclePlanner::choose(const LayerContext& context, std::vector<char>& keep) {
  const int heads = context.config.kv_heads;
  const int width = context.config.group() * context.config.head_dim;
  layers_ = context.config.layers;
  std::vector<float> outputs = attend(context, false);
  if (policy().rank_by == RankBy::kContribution && policy().fallback != Fallback::kNone) {
    const std::vector<float> fallen = attend(context, true);
    for (size_t i = 0; i < outputs.size(); ++i) outputs[i] -= fallen[i];
  }
  std::vector<double> scores(heads);
  std::vector<int> order(heads);
  for (int row = 0; row < rows(); ++row) {
    for (int unit = 0; unit < heads; ++unit) {
      const size_t begin = (static_cast<size_t>(row) * heads + unit) * width;
      scores[unit] = score(context.layer, unit, outputs.data() + begin, width);
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return scores[a] > scores[b]; });
    for (int i = 0; i < policy().kept(heads); ++i)
      keep[static_cast<size_t>(row) * heads + order[i]] = 1;
  }
}

std::vector<std::vector<float>> output_gram_matrices(const model::ModelFile& file) {
  const model::ModelConfig& config = file.config();
  const int width = config.group() * config.head_dim;
  std::vector<std::vector<float>> grams;
  std::vector<float> row(config.query_width());
  for (const model::LayerTensors& layer : file.layers) {
    const size_t first = grams.size();
    grams.resize(first + config.kv_heads, std::vector<float>(static_cast<size_t>(width) * width));
    const size_t row_bytes = dtype_bytes(layer.output.dtype, row.size());
    for (int64_t r = 0; r < layer.output.shape[0]; ++r) {
      dequantize_row(layer.output.dtype, layer.output.as<std::byte>() + r * row_bytes, row.data(),
                     row.size());
      for (int unit = 0; unit < config.kv_heads; ++unit) {
        const float* values = row.data() + static_cast<ptrdiff_t>(unit) * width;
        float* gram = grams[first + unit].data();
        for (int i = 0; i < width; ++i) {
          for (int j = 0; j < width; ++j)
            gram[static_cast<size_t>(i) * width + j] += values[i] * values[j];
        }
      }
    }
  }
  return grams;
}

}  // namespace polar::study
