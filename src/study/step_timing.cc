#include "study/step_timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <random>

#include "backend/ranges.h"
#include "model/profile_planner.h"
#include "study/sequence_cache.h"

namespace polar::study {

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// One cell of the grid: `batch` sequences whose caches hold `context` - 1 tokens; a step appends
/// one to each, again and again at the same position.
class Cell {
 public:
  Cell(backend::Device& device, const model::Weights& weights, const StepBenchOptions& options,
       int batch, int context)
      : device_(device), weights_(weights), options_(options), batch_(batch), context_(context) {}

  /// `planner`: of the sparse side, or null.
  Status prepare(const model::Planner* planner) {
    if (planner != nullptr) points_ = planner->points();
    const int rows = std::max(batch_, std::min(context_, kPrefillRows));
    POLAR_ASSIGN(decoder_, model::Decoder::create(device_, weights_, {rows, batch_}));
    POLAR_ASSIGN(auto cache,
                 SequenceCache::create(device_, weights_.config, options_.kv_dtype, batch_,
                                       context_, options_.seed, page_extras(planner, batch_)));
    cache_ = std::make_unique<SequenceCache>(std::move(cache));
    cache_->fill_random(options_.seed);
    std::mt19937_64 random(options_.seed);
    tokens_.resize(context_);
    for (int32_t& token : tokens_)
      token = static_cast<int32_t>(random() % weights_.config.vocabulary);
    return {};
  }

  /// Prefills all sequences but for their last tokens; returns the tokens per second of it.
  double prefill() {
    const double begin = now();
    int64_t done = 0;
    for (int sequence = 0; sequence < batch_; ++sequence) {
      for (int position = 0; position + 1 < context_; position += kPrefillRows) {
        const int count = std::min(kPrefillRows, context_ - 1 - position);
        const Chunk chunk{sequence, position, std::span(tokens_).subspan(position, count), false};
        decoder_->forward(cache_->pack({&chunk, 1}, {}), cache_->kv(), dense_, nullptr);
        done += count;
      }
    }
    device_.synchronize();
    return static_cast<double>(done) / (now() - begin);
  }

  /// Seconds of one decode step of the whole batch. `key`: what a device that can records the
  /// step under.
  double step(model::Planner& planner, uint64_t key) {
    pack_decode();
    const auto forward = [&] { decoder_->forward(*decode_, cache_->kv(), planner, nullptr); };
    const double begin = now();
    records(planner) ? replay_.run(key, planner.neurons(), forward) : forward();
    device_.synchronize();
    return now() - begin;
  }

  /// What the verbs of such a step cost.
  std::vector<backend::VerbCost> trace(model::Planner& planner) {
    if (!records(planner)) return {};
    return device_.trace([&] { decoder_->forward(*decode_, cache_->kv(), planner, nullptr); });
  }

  /// What the last step read, all sequences together.
  backend::ReadCount read() {
    std::vector<backend::ReadCount> rows(batch_);
    device_.download(rows.data(), decoder_->read_counts(), rows.size() * sizeof(rows[0]));
    backend::ReadCount sum;
    for (const backend::ReadCount& row : rows) {
      sum.blocks += row.blocks;
      sum.scored += row.scored;
      sum.summaries += row.summaries;
    }
    return sum;
  }

  const backend::KvView& kv() const { return cache_->kv(); }

 private:
  static constexpr int kPrefillRows = 512;

  /// These planners plan on the device; who chooses neurons may not.
  static bool records(const model::Planner& planner) {
    return planner.neurons() == nullptr || planner.neurons()->on_device();
  }

  void pack_decode() {
    if (decode_ != nullptr) return;
    std::vector<Chunk> chunks;
    std::vector<int32_t> logit_rows;
    for (int sequence = 0; sequence < batch_; ++sequence) {
      chunks.push_back({sequence, context_ - 1, std::span(tokens_).subspan(context_ - 1, 1), true,
                        sequence % points_});
      logit_rows.push_back(sequence);
    }
    decode_ = &cache_->pack(chunks, logit_rows);
  }

  backend::Device& device_;
  const model::Weights& weights_;
  const StepBenchOptions& options_;
  int batch_, context_;
  int points_ = 1;
  std::unique_ptr<model::Decoder> decoder_;
  std::unique_ptr<SequenceCache> cache_;
  std::vector<int32_t> tokens_;
  const backend::Batch* decode_ = nullptr;
  model::DensePlanner dense_;
  model::StepReplay replay_{device_};
};

model::NeuronPlanner::Counts neuron_counts(const model::Planner& planner) {
  return planner.neurons() != nullptr ? planner.neurons()->counts()
                                      : model::NeuronPlanner::Counts{};
}

/// Bytes of weights that one of `steps` steps read, routers included; `neurons`: what these chose.
double weight_bytes(const model::Weights& weights, const model::NeuronPlanner::Counts& neurons,
                    int steps) {
  auto bytes = static_cast<double>(weights.step_bytes()) + neurons.router_bytes / steps;
  const double spared = 1 - neurons.share();
  if (spared == 0) return bytes;
  for (const model::LayerWeights& layer : weights.layers)
    bytes -= spared * static_cast<double>(layer.up->bytes() + layer.down->bytes());
  return bytes;
}

}  // namespace

Result<std::unique_ptr<model::Planner>> random_units_planner(const Policy& policy,
                                                             backend::Device& device,
                                                             const model::ModelConfig& config,
                                                             int sequences) {
  POLAR_RETURN_IF_ERROR(make_planner(policy, device, config));  // says what is wrong with it
  sparsity::Profile profile = sparsity::dense_profile(config.layers, config.kv_heads);
  const sparsity::OperatingPoint dense = std::move(profile.points[0]);
  profile.points.clear();
  const auto fallback =
      policy.fallback == Fallback::kNone ? backend::ReadKind::kNone : backend::ReadKind::kWindow;
  std::mt19937_64 random(policy.seed);
  for (int sequence = 0; sequence < sequences; ++sequence) {
    sparsity::OperatingPoint point = dense;
    point.limits = {policy.sink, policy.recent, 0};
    double carried = 0.5;
    for (int layer = 0; layer < config.layers; ++layer) {
      if (policy.is_dense(layer)) continue;
      carried += policy.density * config.kv_heads;
      const int kept = static_cast<int>(carried);
      carried -= kept;
      const auto begin = point.budgets.begin() + static_cast<ptrdiff_t>(layer) * config.kv_heads;
      for (int unit = kept; unit < config.kv_heads; ++unit) begin[unit].kind = fallback;
      std::shuffle(begin, begin + config.kv_heads, random);
    }
    profile.points.push_back(std::move(point));
  }
  POLAR_ASSIGN(auto planner, model::ProfilePlanner::create(device, profile));
  return std::unique_ptr<model::Planner>(std::move(planner));
}

std::shared_ptr<const sparsity::Routers> random_routers(const model::ModelConfig& config,
                                                        double share, uint64_t seed) {
  constexpr size_t kBlock = 32, kStretch = 65537 * kBlock;  // of values, repeated
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(static_cast<float>(config.hidden)));
  std::vector<float> values(kStretch);
  for (float& value : values) value = normal(random);
  std::vector<std::byte> stretch(dtype_bytes(DType::kQ4_0, kStretch));
  quantize_q4_0(values.data(), stretch.data(), kStretch);
  sparsity::Routers routers;
  routers.hidden = config.hidden;
  routers.kv_heads = config.kv_heads;
  routers.ffn = config.ffn;
  routers.recalls = {1.0};
  routers.batches = {1 << 20};
  routers.mlps.resize(config.layers);
  for (sparsity::MlpRouter& mlp : routers.mlps) {
    mlp.copy.resize(dtype_bytes(DType::kQ4_0, static_cast<size_t>(config.ffn) * config.hidden));
    for (size_t done = 0; done < mlp.copy.size(); done += stretch.size())
      std::copy_n(stretch.begin(), std::min(stretch.size(), mlp.copy.size() - done),
                  mlp.copy.begin() + static_cast<ptrdiff_t>(done));
    mlp.unit = 1.0f;
    mlp.bias.resize(config.ffn);
    mlp.neurons = {std::max(1, static_cast<int32_t>(std::lround(share * config.ffn)))};
  }
  return std::make_shared<const sparsity::Routers>(std::move(routers));
}

Result<StepBenchResult> bench_steps(backend::Device& device, const model::Weights& weights,
                                    const std::string& name, model::Planner* sparse,
                                    const StepBenchOptions& options) {
  StepBenchResult result;
  result.read_bandwidth = device.measure_read_bandwidth();
  model::DensePlanner dense;
  for (const int batch : options.batches) {
    for (const int context : options.contexts) {
      Cell cell(device, weights, options, batch, context);
      POLAR_RETURN_IF_ERROR(cell.prepare(sparse));
      const double prefill = options.prefill ? cell.prefill() : 0;

      struct Side {
        model::Planner* planner;
        std::vector<double> seconds = {};
        backend::ReadCount read = {};
        model::NeuronPlanner::Counts before = {};
        uint64_t key;
      };
      std::vector<Side> sides;
      sides.push_back({.planner = &dense, .key = device.own_key()});
      if (sparse != nullptr) sides.push_back({.planner = sparse, .key = device.own_key()});
      for (int step = -3; step < options.steps; ++step) {  // three steps of warm-up
        for (Side& side : sides) {
          if (step == 0) side.before = neuron_counts(*side.planner);
          const double seconds = cell.step(*side.planner, side.key);
          if (step >= 0) side.seconds.push_back(seconds);
          side.read = cell.read();
        }
      }
      double dense_seconds = 0, dense_bytes = 0;
      for (Side& side : sides) {
        StepBenchRow row;
        row.batch = batch;
        row.context = context;
        row.point = side.planner == &dense ? "dense" : name;
        row.step_seconds = median(side.seconds);
        row.prefill_tokens_per_second = prefill;
        row.kv_bytes = cell.kv().bytes({side.read.blocks, 0, side.read.summaries});
        row.score_bytes = cell.kv().bytes({0, side.read.scored});
        const model::NeuronPlanner::Counts neurons =
            neuron_counts(*side.planner).since(side.before);
        row.weight_bytes = weight_bytes(weights, neurons, options.steps);
        row.neuron_share = neurons.share();
        row.bandwidth_share = row.read_bytes() / row.step_seconds / result.read_bandwidth;
        if (side.planner == &dense) {
          dense_seconds = row.step_seconds;
          dense_bytes = row.read_bytes();
        }
        row.effective_density = cell.kv().bytes(side.read) / cell.kv().bytes(sides[0].read);
        row.speedup = dense_seconds / row.step_seconds;
        row.ideal_speedup = dense_bytes / row.read_bytes();
        row.floor_share = row.read_bytes() / result.read_bandwidth / row.step_seconds;
        row.verbs = cell.trace(*side.planner);
        result.rows.push_back(std::move(row));
      }
    }
  }
  return result;
}

}  // namespace polar::study
