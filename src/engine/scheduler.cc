#include "engine/scheduler.h"

#include <algorithm>
#include <limits>
#include <span>

namespace polar::engine {

using backend::kPageTokens;
using cache::PrefixCache;

namespace {

int pages_for(int tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

std::span<const int32_t> page_tokens(const Sequence& sequence, int page) {
  return std::span(sequence.tokens).subspan(static_cast<size_t>(page) * kPageTokens, kPageTokens);
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits)
    : limits_(limits), pool_(limits.pages), cache_(pool_, limits.hash_bits) {
  POLAR_CHECK(limits.max_batch > 0 && limits.step_rows >= limits.max_batch &&
              limits.step_planned_rows >= limits.max_batch &&
              limits.step_logit_rows >= limits.max_batch);
  POLAR_CHECK(limits.pages >= pages_for(limits.max_length));
  for (int slot = limits.max_batch - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

Sequence* Scheduler::add(std::unique_ptr<Sequence> sequence) {
  Sequence* raw = sequence.get();
  POLAR_CHECK(raw->prompt >= 1 && raw->prompt == static_cast<int>(raw->tokens.size()));
  POLAR_CHECK(raw->max_output >= 0 && raw->prompt + raw->max_output <= limits_.max_length);
  raw->order = arrivals_++;
  waiting_.push_back(raw);
  sequences_.emplace(raw, std::move(sequence));
  return raw;
}

/// True if a running sequence has rows that the next step could run.
bool Scheduler::has_rows(const Sequence& sequence) const {
  const bool wants_output = sequence.output() < sequence.max_output;
  return sequence.computed < (wants_output ? sequence.length() : sequence.prompt);
}

/// True if all that is left to run is the row of the newest output token.
bool Scheduler::decoding(const Sequence& sequence) const {
  return sequence.output() > 0 && sequence.computed + 1 == sequence.length() && has_rows(sequence);
}

StepPlan Scheduler::schedule() {
  preempted_now_ = false;
  for (Sequence* sequence : running_) offer_pages(*sequence, true);
  StepPlan plan;
  schedule_decode(plan);
  // Sequences admitted below join `running_` behind those that are here now.
  const size_t before = running_.size();
  for (size_t i = 0; i < before; ++i) {
    Sequence& sequence = *running_[i];
    if (has_rows(sequence) && !decoding(sequence)) schedule_chunk(plan, sequence);
  }
  if (!preempted_now_) admit(plan);
  std::stable_partition(plan.chunks.begin(), plan.chunks.end(),
                        [](const StepChunk& chunk) { return !chunk.planned; });
  return plan;
}

/// A row for every sequence that is decoding, the oldest first; who finds no page makes the newest
/// go.
void Scheduler::schedule_decode(StepPlan& plan) {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (!decoding(sequence)) continue;
    if (grow(sequence)) schedule_chunk(plan, sequence);
  }
}

/// Makes room for one more token. False if the sequence itself was the newest and had to go.
bool Scheduler::grow(Sequence& sequence) {
  if (sequence.computed < static_cast<int>(sequence.pages.size()) * kPageTokens) return true;
  int32_t page = cache_.allocate();
  while (page < 0) {
    Sequence& newest = *running_.back();
    preempt(newest);
    if (&newest == &sequence) return false;
    page = cache_.allocate();
  }
  sequence.pages.push_back(page);
  return true;
}

void Scheduler::preempt(Sequence& sequence) {
  POLAR_CHECK(running_.size() > 1);  // alone, every sequence fits
  ++preemptions_;
  preempted_now_ = true;
  offer_pages(sequence, true);
  leave_batch(sequence);
  sequence.state = Sequence::State::kWaiting;
  waiting_.push_front(&sequence);
}

/// Frees what a running sequence holds.
void Scheduler::leave_batch(Sequence& sequence) {
  while (!sequence.pages.empty()) {
    cache_.release(sequence.pages.back());
    sequence.pages.pop_back();
  }
  sequence.nodes.clear();
  sequence.computed = 0;
  free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
  running_.erase(std::find(running_.begin(), running_.end(), &sequence));
}

/// Adds as many of the sequence's next rows as the step has room for.
bool Scheduler::schedule_chunk(StepPlan& plan, Sequence& sequence) {
  const int position = sequence.computed;
  const bool decode = decoding(sequence);
  const bool sparse_output = sequence.point != 0 && position >= sequence.prompt;
  StepChunk chunk;
  chunk.sequence = &sequence;
  chunk.position = position;
  chunk.slot = sequence.slot;
  chunk.planned = decode || sparse_output;
  const bool mixed = sequence.point != 0 && position < sequence.prompt;
  const int end = mixed ? sequence.prompt : sequence.length();
  int rows = std::min(end - position, limits_.step_rows - plan.rows);
  if (chunk.planned) rows = std::min(rows, limits_.step_planned_rows - plan.planned_rows);
  if (rows <= 0) return false;

  const int logits_left = limits_.step_logit_rows - plan.logit_rows;
  if (sequence.score_prompt) {
    // Rows before `scored` were scored before a preemption; the last prompt row scores nothing.
    chunk.score_begin = std::max(0, sequence.scored - position);
    const int last = std::min(position + rows, sequence.prompt - 1);
    chunk.score_rows = std::max(0, last - position - chunk.score_begin);
    if (chunk.score_rows > logits_left) {
      chunk.score_rows = logits_left;
      rows = chunk.score_begin + logits_left;
    }
  }
  const bool wants_output = sequence.output() < sequence.max_output;
  chunk.samples = wants_output && position + rows == sequence.length();
  if (chunk.logit_rows() > logits_left) {
    chunk.samples = false;
    --rows;
  }
  if (rows <= 0) return false;

  chunk.rows = rows;
  chunk.from_slot = position + rows > static_cast<int>(sequence.tokens.size());
  POLAR_CHECK(!chunk.from_slot || rows == 1);
  chunk.output_index = sequence.output();
  plan.rows += rows;
  plan.planned_rows += chunk.planned ? rows : 0;
  plan.logit_rows += chunk.logit_rows();
  sequence.computed += rows;
  sequence.scored = std::max(sequence.scored, position + chunk.score_begin + chunk.score_rows);
  if (chunk.samples) ++sequence.in_flight;
  ++sequence.open_steps;
  plan.chunks.push_back(chunk);
  // Within a step K and V of all rows are stored before any row reads them, so whoever is admitted
  // to this very step may already share these pages.
  offer_pages(sequence, false);
  return true;
}

void Scheduler::admit(StepPlan& plan) {
  while (!waiting_.empty() && !free_slots_.empty() && plan.rows < limits_.step_rows) {
    Sequence& sequence = *waiting_.front();
    if (!try_admit(sequence)) return;
    waiting_.pop_front();
    schedule_chunk(plan, sequence);
  }
}

/// Gives a sequence a slot and the pages of all its tokens, if they are there and leave a page for
/// each running sequence to grow into.
bool Scheduler::try_admit(Sequence& sequence) {
  if (sequence.in_flight > 0) return false;  // its last token is about to be seen
  match_prefix(sequence);
  const int needed = pages_for(sequence.length()) - static_cast<int>(sequence.pages.size());
  if (cache_.available() < needed + running()) {
    while (!sequence.pages.empty()) {
      cache_.release(sequence.pages.back());
      sequence.pages.pop_back();
    }
    sequence.nodes.clear();
    sequence.computed = 0;
    return false;
  }
  for (int i = 0; i < needed; ++i) {
    sequence.pages.push_back(cache_.allocate());
    POLAR_CHECK(sequence.pages.back() >= 0);
  }
  if (!sequence.admitted) sequence.cached = std::min(sequence.computed, sequence.prompt);
  sequence.admitted = true;
  sequence.state = Sequence::State::kRunning;
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  POLAR_CHECK(running_.empty() || running_.back()->order < sequence.order);
  running_.push_back(&sequence);
  return true;
}

/// Takes the sequence's leading pages from the cache, all but the last token's: that one must run
/// to give logits. Pages of the prompt may be dense ones or of the sequence's own point; pages
/// behind it only what the same point wrote.
void Scheduler::match_prefix(Sequence& sequence) {
  POLAR_CHECK(sequence.pages.empty() && sequence.nodes.empty());
  sequence.cacheable = limits_.prefix_cache;
  const int prompt_pages = sequence.prompt / kPageTokens;
  sequence.dense_pages = sequence.point == 0 ? std::numeric_limits<int>::max() : prompt_pages;
  if (!limits_.prefix_cache || sequence.score_prompt) return;
  const int most = (static_cast<int>(sequence.tokens.size()) - 1) / kPageTokens;
  PrefixCache::Node parent = PrefixCache::kRoot;
  for (int page = 0; page < most; ++page) {
    const auto tokens = page_tokens(sequence, page);
    std::optional<PrefixCache::Found> found;
    if (page < sequence.dense_pages) found = cache_.find(parent, tokens, 0);
    if (!found && sequence.point != 0) {
      found = cache_.find(parent, tokens, static_cast<uint64_t>(sequence.point));
      if (found) sequence.dense_pages = std::min(sequence.dense_pages, page);
    }
    if (!found) break;
    sequence.pages.push_back(found->page);
    sequence.nodes.push_back(found->node);
    parent = found->node;
  }
  sequence.computed = static_cast<int>(sequence.pages.size()) * kPageTokens;
}

/// Offers the pages that are full and whose tokens are known to the cache. With `exchange` a page
/// that is there already replaces the sequence's own; without, such a page ends it: rows of the
/// step being made will still write the sequence's own.
void Scheduler::offer_pages(Sequence& sequence, bool exchange) {
  const int known = std::min(sequence.computed, static_cast<int>(sequence.tokens.size()));
  while (sequence.cacheable) {
    const int page = static_cast<int>(sequence.nodes.size());
    if ((page + 1) * kPageTokens > known) return;
    const PrefixCache::Node parent = page == 0 ? PrefixCache::kRoot : sequence.nodes.back();
    const auto tokens = page_tokens(sequence, page);
    const uint64_t salt = page < sequence.dense_pages ? 0 : static_cast<uint64_t>(sequence.point);
    if (!exchange && cache_.holds(parent, tokens, salt)) return;
    const PrefixCache::Found found = cache_.insert(parent, tokens, salt, sequence.pages[page]);
    if (found.node == PrefixCache::kNone) {
      sequence.cacheable = false;
      return;
    }
    sequence.pages[page] = found.page;
    sequence.nodes.push_back(found.node);
  }
}

void Scheduler::accept(Sequence& sequence, int32_t token) {
  POLAR_CHECK(!sequence.done() && sequence.in_flight > 0);
  --sequence.in_flight;
  sequence.tokens.push_back(token);
}

void Scheduler::finish(Sequence& sequence) {
  POLAR_CHECK(!sequence.done());
  if (sequence.state == Sequence::State::kRunning) {
    offer_pages(sequence, true);
    leave_batch(sequence);
  } else {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &sequence));
  }
  sequence.state = Sequence::State::kDone;
  erase_if_done(sequence);
}

void Scheduler::complete(const StepPlan& plan) {
  for (const StepChunk& chunk : plan.chunks) {
    --chunk.sequence->open_steps;
    erase_if_done(*chunk.sequence);
  }
}

void Scheduler::erase_if_done(Sequence& sequence) {
  if (sequence.done() && sequence.open_steps == 0) sequences_.erase(&sequence);
}

}  // namespace polar::engine
