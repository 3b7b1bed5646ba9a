#pragma once
// The engine: many requests at once on one device, behind three calls that any thread may make.

#include <atomic>
#include <memory>
#include <optional>
#include <thread>

#include "engine/generation.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "model/weights.h"
#include "sparsity/profile.h"

namespace polar::engine {

class CommandQueue;
class EngineThread;

struct EngineOptions {
  DType kv_dtype = DType::kF16;
  size_t kv_bytes = 0;  // memory for the KV cache; 0: half of what is free
  int max_batch = 0;    // sequences that run together; 0: 32 on the CPU, 128 on a GPU
  int max_length = 0;   // tokens of a request, prompt and output; 0: what the model and the memory
                        // allow
  int step_rows = 0;    // tokens of one step; 0: 512 on the CPU, 2048 on a GPU
  bool prefix_cache = true;
  /// Which steps choose neurons, where the profile's points do: those in which that is measured to
  /// pay on this machine when the engine is made, or all, whatever the machine.
  enum class Neurons : uint8_t { kWherePaying, kAlways } neurons = Neurons::kWherePaying;
  /// Whether a step is prepared and queued before the results of the one before it are read. By
  /// default on a GPU only: the CPU's verbs return when they are done, so there is nothing to hide.
  enum class Pipeline : uint8_t { kByDevice, kOff, kOn } pipeline = Pipeline::kByDevice;
};

/// A snapshot; counters since the start.
struct EngineStats {
  int running = 0, waiting = 0;
  int pages = 0, free_pages = 0, cached_pages = 0;  // free: what could be given out now
  int64_t steps = 0;
  int64_t requests = 0, finished = 0, cancelled = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  int64_t preemptions = 0, evictions = 0;
  double kv_bytes_read = 0, kv_bytes_dense = 0;     // of decode steps
  int64_t kv_blocks_read = 0, kv_blocks_dense = 0;  // the same in blocks (page, KV head, layer)
  /// Neurons computed / all, of steps with decode rows, where points choose neurons; elsewhere 1.
  double neuron_density = 1;
  std::optional<double> plan_seconds;  // of deciding what steps read; on the CPU only
};

class Engine {
 public:
  /// Allocates cache and activations and starts the engine thread, which from then on is the only
  /// one to use `device`. Device and weights must outlive the engine. `profile`: what operating
  /// points mean (model::prepare_neurons made it ready); null: dense alone. Errors: not enough
  /// memory, limits that the model does not have.
  static Result<std::unique_ptr<Engine>> create(backend::Device& device,
                                                const model::Weights& weights,
                                                const sparsity::Profile* profile,
                                                const EngineOptions& options);
  /// Cancels what is running and waits for the thread.
  ~Engine();

  /// Queues a request; never waits. Errors say what the request asks for that cannot be: an empty
  /// prompt, a token the model does not have, a prompt longer than max_length, a parameter out of
  /// range. `max_tokens` beyond what fits is cut.
  Result<std::shared_ptr<Generation>> submit(GenerationRequest request);

  EngineStats stats() const;
  int max_length() const { return limits_.max_length; }
  int max_batch() const { return limits_.max_batch; }
  const model::ModelConfig& config() const { return config_; }

 private:
  Engine(const model::ModelConfig& config, int points);
  Status check(const GenerationRequest& request) const;

  const model::ModelConfig config_;
  int points_;
  SchedulerLimits limits_;
  std::shared_ptr<CommandQueue> commands_;
  std::unique_ptr<EngineThread> worker_;
  std::thread thread_;
  std::atomic<uint64_t> next_id_{1};
};

}  // namespace polar::engine
