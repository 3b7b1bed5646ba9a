#pragma once
// What the engine thread does. Private to src/engine.

#include <map>
#include <memory>
#include <mutex>

#include "engine/command_queue.h"
#include "engine/engine.h"
#include "engine/job.h"
#include "engine/scheduler.h"
#include "engine/step_runner.h"

namespace polar::engine {

/// Owns scheduler, planner and step runner. After construction only run() uses them, on the engine
/// thread.
class EngineThread {
 public:
  EngineThread(std::shared_ptr<CommandQueue> commands, std::unique_ptr<model::Planner> planner,
               std::unique_ptr<StepRunner> runner, const SchedulerLimits& limits, bool pipelined);

  /// Runs steps until it is told to stop; then cancels what is left.
  void run();

  EngineStats stats() const;

 private:
  bool take_commands(bool wait);
  void cancel(Job& job);
  bool needs_tokens() const;
  void mark_started(const StepPlan& plan);
  void read(std::unique_ptr<OpenStep> step);
  void read_chunk(const OpenStep& step, const StepChunk& chunk, const backend::Sampled* results,
                  int planned);
  void count_reads(const OpenStep& step, const StepChunk& chunk, int planned, Job& job);
  void finish(Job& job, FinishReason reason, Event event);
  void publish_stats();

  std::shared_ptr<CommandQueue> commands_;
  std::unique_ptr<model::Planner> planner_;
  std::unique_ptr<StepRunner> runner_;
  Scheduler scheduler_;
  bool pipelined_;
  std::map<uint64_t, Job*> jobs_;  // alive, by Generation::id
  EngineStats counters_;
  mutable std::mutex stats_mutex_;
  EngineStats published_;
};

}  // namespace polar::engine
