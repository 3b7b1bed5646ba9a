#pragma once
// Which rows run in the next step, and in which pages: pure host logic that knows no model.

#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "cache/page_pool.h"
#include "cache/prefix_cache.h"

namespace polar::engine {

struct SchedulerLimits {
  int max_batch = 32;          // sequences that hold a slot
  int step_rows = 512;         // rows of one step: the token budget, at least max_batch
  int step_planned_rows = 64;  // planned rows of one step, at least max_batch
  int step_logit_rows = 64;    // rows of one step whose logits are wanted, at least max_batch
  int max_length = 2048;       // tokens of a sequence, prompt and output
  int pages = 0;               // at least what one sequence of max_length needs
  bool prefix_cache = true;
  int hash_bits = 64;  // of the prefix cache: fewer only in tests
};

/// A request as the scheduler sees it. Whoever drives the scheduler derives from it.
struct Sequence {
  virtual ~Sequence() = default;

  std::vector<int32_t> tokens;  // prompt, then the output tokens that the host has seen
  int prompt = 0;               // tokens of the prompt
  int max_output = 0;           // 0: the prompt is only run
  int point = 0;                // operating point; 0: dense
  bool score_prompt =
      false;  // logits of all prompt rows are wanted: nothing is taken from the cache

  // Kept by the scheduler.
  enum class State : uint8_t { kWaiting, kRunning, kDone };
  State state = State::kWaiting;
  uint64_t order = 0;  // of arrival
  int slot = -1;
  int computed = 0;    // tokens whose K and V the steps made so far store
  int in_flight = 0;   // output tokens that steps sample and the host has not seen
  int scored = 0;      // prompt rows whose logits were wanted so far
  int cached = 0;      // prompt tokens found in the cache at the first admission
  int open_steps = 0;  // steps not yet completed that name this sequence
  bool admitted = false;
  std::vector<int32_t> pages;
  std::vector<cache::PrefixCache::Node> nodes;  // of the leading pages that are in the cache
  bool cacheable = true;                        // false behind a hash collision
  int dense_pages = 0;  // leading pages whose K and V are dense, so that every point may use them

  int length() const { return static_cast<int>(tokens.size()) + in_flight; }
  int output() const { return length() - prompt; }
  bool done() const { return state == State::kDone; }
};

/// Consecutive rows of one sequence in a step.
struct StepChunk {
  Sequence* sequence = nullptr;
  int position = 0;  // of its first row
  int rows = 0;
  bool planned = false;    // decode rows, and recomputed output of a sparse point; else prefill
  bool from_slot = false;  // its only row's token is what `slot` sampled last
  bool samples = false;    // the last row's logits give the next token
  int score_begin = 0;     // rows [score_begin, score_begin + score_rows) of the chunk
  int score_rows = 0;      // score the prompt token behind each of them
  int slot = 0;
  int output_index = 0;  // with `samples`: which output token, from 0

  int logit_rows() const { return score_rows + (samples ? 1 : 0); }
};

/// One step, prefill chunks first. The page tables are those of the sequences until the scheduler
/// is called again.
struct StepPlan {
  std::vector<StepChunk> chunks;
  int rows = 0;
  int planned_rows = 0;
  int logit_rows = 0;
  bool empty() const { return chunks.empty(); }
};

/// Continuous batching. Every step holds one row of each decoding sequence and, in what is left of
/// the token budget, chunks of the prompts of the others, oldest first. Sequences are admitted in
/// the order of arrival as soon as a slot and the pages of their prompt are there; when pages run
/// out, the newest sequence gives its pages back and is recomputed later. So the oldest always gets
/// on, and nobody starves.
///
/// One step may be in flight when the next is made: a decode row then takes its token from its
/// slot. K and V of a sparse point's output are recomputed by planned rows, exactly as they were
/// made. Not for concurrent use.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  /// Takes a sequence over. It must fit: 1 <= prompt, prompt + max_output <= max_length.
  Sequence* add(std::unique_ptr<Sequence> sequence);

  /// Makes the next step; empty when there is nothing to run before results are seen.
  StepPlan schedule();

  /// The token that a step sampled for a sequence that is not done.
  void accept(Sequence& sequence, int32_t token);

  /// Ends a sequence: its pages are free, and it ceases to exist when no open step names it.
  void finish(Sequence& sequence);

  /// All results of a step have been seen. Steps complete in the order in which they were made.
  void complete(const StepPlan& plan);

  bool idle() const { return running_.empty() && waiting_.empty(); }
  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  int available_pages() const { return cache_.available(); }
  int64_t preemptions() const { return preemptions_; }
  const cache::PrefixCache& prefix_cache() const { return cache_; }
  const cache::PagePool& pool() const { return pool_; }
  const SchedulerLimits& limits() const { return limits_; }

 private:
  bool decoding(const Sequence& sequence) const;
  bool has_rows(const Sequence& sequence) const;
  bool grow(Sequence& sequence);
  void preempt(Sequence& sequence);
  void schedule_decode(StepPlan& plan);
  bool schedule_chunk(StepPlan& plan, Sequence& sequence);
  void admit(StepPlan& plan);
  bool try_admit(Sequence& sequence);
  void match_prefix(Sequence& sequence);
  void offer_pages(Sequence& sequence, bool exchange);
  void leave_batch(Sequence& sequence);
  void erase_if_done(Sequence& sequence);

  SchedulerLimits limits_;
  cache::PagePool pool_;
  cache::PrefixCache cache_;
  std::vector<int> free_slots_;
  std::vector<Sequence*> running_;  // in the order of arrival
  std::deque<Sequence*> waiting_;   // in the order of arrival
  std::unordered_map<const Sequence*, std::unique_ptr<Sequence>> sequences_;
  uint64_t arrivals_ = 0;
  int64_t preemptions_ = 0;
  bool preempted_now_ = false;  // in the schedule() that is running
};

}  // namespace polar::engine
