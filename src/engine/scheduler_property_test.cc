// The scheduler against a deterministic model that lives in a dozen lines: what a page slot holds
// depends on every slot before it, read through the page tables, so a lost, stale or foreign page
// changes the tokens that come out.

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>

#include "engine/scheduler.h"

namespace polar::engine {
namespace {

using backend::kPageTokens;

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// What a row stores: its token, position, and how it was computed, chained over all before it.
uint64_t row_state(uint64_t sum_before, int32_t token, int position, int point) {
  return mix(sum_before + 0x9e3779b97f4a7c15ull * static_cast<uint64_t>(token + 1) +
             1000003ull * static_cast<uint64_t>(position) +
             7777777ull * static_cast<uint64_t>(point));
}

int32_t next_token(uint64_t state) {
  return static_cast<int32_t>(mix(state + 5) % 50000);
}
bool ends_text(int32_t token) {
  return token % 97 == 0;
}

std::vector<int32_t> alone(const std::vector<int32_t>& prompt, int max_output, int point) {
  std::vector<int32_t> tokens = prompt;
  uint64_t sum = 0, state = 0;
  std::vector<int32_t> output;
  for (size_t i = 0; static_cast<int>(output.size()) < max_output; ++i) {
    state = row_state(sum, tokens[i], static_cast<int>(i), i < prompt.size() ? 0 : point);
    sum += state;
    if (i + 1 < tokens.size()) continue;
    output.push_back(next_token(state));
    tokens.push_back(output.back());
    if (ends_text(output.back())) break;
  }
  return output;
}

struct Job : Sequence {
  int index = 0;
};

struct Request {
  std::vector<int32_t> prompt;
  int max_output = 0;
  int point = 0;
  bool score = false;
  int arrival = 0;     // step
  int cancel_at = -1;  // step; -1: never
};

/// Runs steps on the fake model, in order, when they are made; results are seen `depth` steps
/// later.
class Harness {
 public:
  Harness(const SchedulerLimits& limits, int depth)
      : scheduler_(limits),
        depth_(depth),
        kv_(limits.pages * kPageTokens),
        last_token_(limits.max_batch) {}

  void run(const std::vector<Request>& requests) {
    outputs_.resize(requests.size());
    scored_.resize(requests.size());
    finished_.resize(requests.size());
    size_t arrived = 0;
    for (int step = 0; arrived < requests.size() || !scheduler_.idle() || !open_.empty(); ++step) {
      RC_ASSERT(step < 40000);
      while (arrived < requests.size() && requests[arrived].arrival <= step) {
        add(requests[arrived], static_cast<int>(arrived));
        ++arrived;
      }
      for (size_t i = 0; i < arrived; ++i) {
        if (requests[i].cancel_at == step && !finished_[i]) end(*jobs_[i]);
      }
      const StepPlan plan = scheduler_.schedule();
      check(plan);
      if (!plan.empty()) {
        execute(plan);
        open_.push_back(plan);
      }
      while (static_cast<int>(open_.size()) > (plan.empty() ? 0 : depth_)) read_oldest();
      watch_oldest();
    }
    RC_ASSERT(scheduler_.available_pages() == scheduler_.limits().pages);
    RC_ASSERT(scheduler_.pool().free_pages() + scheduler_.prefix_cache().cached_pages() ==
              scheduler_.limits().pages);
  }

  const std::vector<int32_t>& output(size_t i) const { return outputs_[i]; }
  const std::vector<int>& scored(size_t i) const { return scored_[i]; }
  const Scheduler& scheduler() const { return scheduler_; }
  int cached_tokens() const { return cached_; }

 private:
  void add(const Request& request, int index) {
    auto job = std::make_unique<Job>();
    job->tokens = request.prompt;
    job->prompt = static_cast<int>(request.prompt.size());
    job->max_output = request.max_output;
    job->point = request.point;
    job->score_prompt = request.score;
    job->index = index;
    jobs_[index] = static_cast<Job*>(scheduler_.add(std::move(job)));
  }

  void end(Job& job) {
    finished_[job.index] = true;
    cached_ += job.cached;
    jobs_.erase(job.index);
    scheduler_.finish(job);
  }

  void check(const StepPlan& plan) {
    const SchedulerLimits& limits = scheduler_.limits();
    int rows = 0, planned = 0, logits = 0;
    bool seen_planned = false;
    std::map<const Sequence*, int> seen;
    for (const StepChunk& chunk : plan.chunks) {
      RC_ASSERT(chunk.rows > 0);
      RC_ASSERT(!(seen_planned && !chunk.planned));
      seen_planned |= chunk.planned;
      RC_ASSERT(++seen[chunk.sequence] == 1);
      rows += chunk.rows;
      planned += chunk.planned ? chunk.rows : 0;
      logits += chunk.logit_rows();
    }
    RC_ASSERT(rows == plan.rows && rows <= limits.step_rows);
    RC_ASSERT(planned == plan.planned_rows && planned <= limits.step_planned_rows);
    RC_ASSERT(logits == plan.logit_rows && logits <= limits.step_logit_rows);
  }

  void execute(const StepPlan& plan) {
    std::vector<const StepChunk*> chunks;
    for (const StepChunk& chunk : plan.chunks) chunks.push_back(&chunk);
    std::sort(chunks.begin(), chunks.end(), [](const StepChunk* a, const StepChunk* b) {
      return a->sequence->order < b->sequence->order;
    });
    for (const StepChunk* chunk : chunks) {
      const Sequence& sequence = *chunk->sequence;
      uint64_t state = 0;
      for (int row = 0; row < chunk->rows; ++row) {
        const int position = chunk->position + row;
        uint64_t sum = 0;
        for (int before = 0; before < position; ++before) sum += at(sequence, before);
        const int32_t token =
            chunk->from_slot ? last_token_[chunk->slot] : sequence.tokens[position];
        state = row_state(sum, token, position, chunk->planned ? sequence.point : 0);
        at(sequence, position) = state;
      }
      if (chunk->samples) last_token_[chunk->slot] = next_token(state);
      results_.push_back(chunk->samples ? next_token(state) : -1);
    }
    std::vector<int32_t> in_plan_order(plan.chunks.size());
    for (size_t i = 0; i < chunks.size(); ++i) {
      in_plan_order[chunks[i] - plan.chunks.data()] = results_[results_.size() - chunks.size() + i];
    }
    results_.resize(results_.size() - chunks.size());
    open_results_.push_back(in_plan_order);
  }

  uint64_t& at(const Sequence& sequence, int position) {
    return kv_[static_cast<size_t>(sequence.pages[position / kPageTokens]) * kPageTokens +
               position % kPageTokens];
  }

  void read_oldest() {
    const StepPlan plan = std::move(open_.front());
    open_.pop_front();
    const std::vector<int32_t> tokens = std::move(open_results_.front());
    open_results_.pop_front();
    for (size_t i = 0; i < plan.chunks.size(); ++i) {
      const StepChunk& chunk = plan.chunks[i];
      if (chunk.sequence->done()) continue;
      Job& job = static_cast<Job&>(*chunk.sequence);
      for (int row = 0; row < chunk.score_rows; ++row)
        scored_[job.index].push_back(chunk.position + chunk.score_begin + row);
      if (chunk.samples) {
        RC_ASSERT(chunk.output_index == static_cast<int>(outputs_[job.index].size()));
        outputs_[job.index].push_back(tokens[i]);
        scheduler_.accept(job, tokens[i]);
        if (ends_text(tokens[i]) || static_cast<int>(outputs_[job.index].size()) == job.max_output)
          end(job);
      } else if (job.max_output == 0 && chunk.position + chunk.rows == job.prompt) {
        end(job);
      }
    }
    scheduler_.complete(plan);
  }

  /// The oldest sequence may not stand still.
  void watch_oldest() {
    if (jobs_.empty()) return;
    const Job& oldest = *jobs_.begin()->second;
    const int progress = oldest.computed + static_cast<int>(oldest.tokens.size());
    const bool moved = jobs_.begin()->first != watched_ || progress != progress_;
    still_ = moved ? 0 : still_ + 1;
    watched_ = jobs_.begin()->first;
    progress_ = progress;
    RC_ASSERT(still_ < 4);
  }

  Scheduler scheduler_;
  int depth_;
  std::vector<uint64_t> kv_;
  std::vector<int32_t> last_token_;
  std::map<int, Job*> jobs_;  // alive, by index: the oldest first
  std::deque<StepPlan> open_;
  std::deque<std::vector<int32_t>> open_results_;
  std::vector<int32_t> results_;
  std::vector<std::vector<int32_t>> outputs_;
  std::vector<std::vector<int>> scored_;
  std::vector<bool> finished_;
  int watched_ = -1, progress_ = 0, still_ = 0, cached_ = 0;
};

struct World {
  SchedulerLimits limits;
  std::vector<Request> requests;
};

World make_world(uint64_t seed, bool sparse) {
  std::mt19937_64 random(seed);
  const auto pick = [&](int low, int high) {
    return low + static_cast<int>(random() % static_cast<uint64_t>(high - low + 1));
  };
  World world;
  SchedulerLimits& limits = world.limits;
  limits.max_batch = pick(1, 6);
  limits.step_rows = limits.max_batch + pick(0, 40);
  limits.step_planned_rows = limits.max_batch + pick(0, 4);
  limits.step_logit_rows = limits.max_batch + pick(0, 4);
  limits.max_length = pick(2, 120);
  limits.pages = (limits.max_length + kPageTokens - 1) / kPageTokens + pick(0, 12);
  limits.prefix_cache = pick(0, 4) > 0;
  limits.hash_bits = pick(0, 3) == 0 ? 2 : 64;
  const int count = pick(1, 24);
  std::vector<std::vector<int32_t>> prefixes(3);
  for (auto& prefix : prefixes) {
    for (int i = pick(0, limits.max_length); i > 0; --i) prefix.push_back(pick(0, 49999));
  }
  int now = 0;
  for (int i = 0; i < count; ++i) {
    Request request;
    request.prompt = prefixes[pick(0, 2)];
    const int longest = limits.max_length - pick(0, 1);
    request.prompt.resize(std::min<int>(request.prompt.size(), pick(0, longest)));
    for (int more = pick(0, 20); more > 0; --more) request.prompt.push_back(pick(0, 49999));
    if (request.prompt.empty()) request.prompt.push_back(pick(0, 49999));
    if (static_cast<int>(request.prompt.size()) > longest) request.prompt.resize(longest);
    // Now and then a conversation goes on: the prompt is a former request and its answer.
    if (!sparse && i > 0 && pick(0, 3) == 0) {
      const Request& former = world.requests[pick(0, i - 1)];
      auto longer = former.prompt;
      for (const int32_t token : alone(former.prompt, former.max_output, 0))
        longer.push_back(token);
      if (static_cast<int>(longer.size()) <= longest) request.prompt = longer;
    }
    request.max_output =
        std::min(pick(0, 60), limits.max_length - static_cast<int>(request.prompt.size()));
    request.point = sparse ? pick(0, 2) : 0;
    request.score = pick(0, 5) == 0;
    request.arrival = now;
    now += pick(0, 3) == 0 ? pick(0, 30) : 0;
    if (pick(0, 5) == 0) request.cancel_at = request.arrival + pick(0, 40);
    world.requests.push_back(std::move(request));
  }
  return world;
}

void every_request_as_if_alone(bool sparse) {
  const auto seed = *rc::gen::arbitrary<uint64_t>();
  const World world = make_world(seed, sparse);
  for (const int depth : {0, 1}) {
    Harness harness(world.limits, depth);
    harness.run(world.requests);
    for (size_t i = 0; i < world.requests.size(); ++i) {
      const Request& request = world.requests[i];
      auto expected = alone(request.prompt, request.max_output, request.point);
      if (request.cancel_at >= 0) {  // what came before is a prefix
        RC_ASSERT(harness.output(i).size() <= expected.size());
        expected.resize(harness.output(i).size());
      } else {
        std::vector<int> rows;
        for (int row = 0; request.score && row + 1 < static_cast<int>(request.prompt.size()); ++row)
          rows.push_back(row);
        RC_ASSERT(harness.scored(i) == rows);
      }
      RC_ASSERT(harness.output(i) == expected);
    }
    RC_CLASSIFY(harness.scheduler().preemptions() > 0, "preempted");
    RC_CLASSIFY(harness.cached_tokens() > 0, "shared pages");
    RC_CLASSIFY(harness.scheduler().prefix_cache().evictions() > 0, "evicted");
  }
}

TEST(Scheduler, EveryDenseRequestGetsItsTokensAsIfAlone) {
  EXPECT_TRUE(rc::check([] { every_request_as_if_alone(false); }));
}

TEST(Scheduler, EverySparseRequestGetsItsTokensAsIfAlone) {
  EXPECT_TRUE(rc::check([] { every_request_as_if_alone(true); }));
}

std::vector<int32_t> numbers(int count, int32_t first) {
  std::vector<int32_t> values(count);
  for (int i = 0; i < count; ++i) values[i] = first + i;
  return values;
}

TEST(Scheduler, SharesAPrefixWithinOneStepAndAcrossSteps) {
  SchedulerLimits limits;
  limits.max_batch = 8;
  limits.max_length = 200;
  limits.pages = 200;
  Harness harness(limits, 1);
  // 100 tokens: six full pages, all of which the second, third (same step) and fourth find.
  std::vector<Request> requests(4, {numbers(100, 7), 3, 0, false, 0, -1});
  requests[3].arrival = 20;
  harness.run(requests);
  EXPECT_EQ(harness.cached_tokens(), 3 * 96);
}

TEST(Scheduler, PreemptsTheNewestWhenPagesRunOut) {
  SchedulerLimits limits;
  limits.max_batch = 4;
  limits.max_length = 128;
  limits.pages = 9;
  limits.prefix_cache = false;
  Harness harness(limits, 1);
  std::vector<Request> requests;
  for (int32_t first = 0; requests.size() < 4; first += 100) {  // answers that are long
    if (alone(numbers(20, first), 100, 0).size() == 100)
      requests.push_back({numbers(20, first), 100, 0, false, 0, -1});
  }
  harness.run(requests);
  EXPECT_GT(harness.scheduler().preemptions(), 0);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(harness.output(i), alone(requests[i].prompt, 100, 0));
}

}  // namespace
}  // namespace polar::engine
