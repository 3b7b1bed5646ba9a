// The engine on the CPU with a small model of random weights. The oracle runs the decoder by hand,
// the whole sequence as one prefill for every token.

#include "engine/engine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <numeric>
#include <random>
#include <set>

#include "engine/test_requests.h"
#include "model/decoder.h"
#include "model/small_config.h"

namespace polar::engine {
namespace {

using backend::kPageTokens;
using model::small_config;

class EngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = backend::make_cpu_device({2});
    ASSERT_TRUE(device.ok()) << device.error().message;
    device_ = std::move(device).value();
    make_weights(small_config());
  }

  void make_weights(const model::ModelConfig& config) {
    auto weights = model::dummy_weights(*device_, config, DType::kF32, 7);
    ASSERT_TRUE(weights.ok()) << weights.error().message;
    weights_ = std::make_unique<model::Weights>(std::move(weights).value());
  }

  std::unique_ptr<Engine> make_engine(EngineOptions options = {},
                                      const sparsity::Profile* profile = nullptr) {
    options.kv_dtype = DType::kF32;
    if (options.max_batch == 0) options.max_batch = 8;
    if (options.max_length == 0) options.max_length = 256;
    auto engine = Engine::create(*device_, *weights_, profile, options);
    EXPECT_TRUE(engine.ok()) << engine.error().message;
    return std::move(engine).value();
  }

  size_t page_bytes() const {
    return backend::KvView{nullptr, DType::kF32, 2, 1, 2, 16}.page_bytes();
  }
  /// Of a page's indices, where pages are chosen, and of its summaries, where they are used.
  size_t indices_bytes(const sparsity::Profile& profile) const {
    backend::KvView one{nullptr, DType::kF32, 2, 1, 2, 16};
    one.page_score = profile.page_score;
    return (profile.selects_pages(0) ? one.indices_bytes() : 0) +
           (profile.uses_summaries() ? one.summaries_bytes() : 0);
  }

  /// Logits of the token behind `tokens`.
  std::vector<float> logits_after(const std::vector<int32_t>& tokens) {
    const int rows = static_cast<int>(tokens.size());
    const int pages = (rows + kPageTokens - 1) / kPageTokens;
    backend::KvView kv{nullptr, DType::kF32, 2, pages, 2, 16};
    auto buffer = device_->allocate(kv.total_bytes(), "test");
    kv.data = buffer->as<std::byte>();
    std::vector<int32_t> position(rows), zeros(rows), table(pages);
    const int32_t begin[] = {0, rows}, last[] = {rows - 1};
    std::iota(position.begin(), position.end(), 0);
    std::iota(table.begin(), table.end(), 0);
    backend::Batch batch;
    batch.rows = batch.prefill_rows = rows;
    batch.sequences = 1;
    batch.token = tokens.data();
    batch.position = position.data();
    batch.sequence = batch.point = zeros.data();
    batch.chunk_begin = begin;
    batch.table_stride = pages;
    batch.pages = table.data();
    batch.logit_row = last;
    batch.logit_rows = 1;
    auto decoder = model::Decoder::create(*device_, *weights_, {rows, 1});
    model::DensePlanner planner;
    const float* logits = (*decoder)->forward(batch, kv, planner, nullptr);
    return {logits, logits + weights_->config.vocabulary};
  }

  std::vector<int32_t> greedy_by_hand(std::vector<int32_t> tokens, int count) {
    const size_t prompt = tokens.size();
    for (int i = 0; i < count; ++i) {
      const auto logits = logits_after(tokens);
      tokens.push_back(
          static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    }
    return {tokens.begin() + static_cast<ptrdiff_t>(prompt), tokens.end()};
  }

  std::unique_ptr<backend::Device> device_;
  std::unique_ptr<model::Weights> weights_;
};

TEST_F(EngineTest, GreedyInAnyBatchEqualsTheDecoderByHand) {
  const std::vector<int> lengths = {1, 15, 16, 17, 40, 100, 3, 64, 31, 5};
  std::vector<GenerationRequest> requests;
  std::vector<std::vector<int32_t>> expected;
  std::set<int32_t> seen;
  for (size_t i = 0; i < lengths.size(); ++i) {
    requests.push_back(request_of(random_tokens(lengths[i], i), 24));
    expected.push_back(greedy_by_hand(requests.back().prompt, 24));
    seen.insert(expected.back().begin(), expected.back().end());
  }
  EXPECT_GT(seen.size(), 5u);  // the model does say something
  for (const auto pipeline : {EngineOptions::Pipeline::kOff, EngineOptions::Pipeline::kOn}) {
    EngineOptions options;
    options.pipeline = pipeline;
    options.step_rows = 24;  // prompts in several chunks
    const auto engine = make_engine(options);
    const auto outcomes = run_all(*engine, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(outcomes[i].tokens, expected[i]) << "request " << i;
      EXPECT_EQ(outcomes[i].finish, FinishReason::kLength);
      EXPECT_EQ(outcomes[i].usage.prompt_tokens, lengths[i]);
      EXPECT_EQ(outcomes[i].usage.completion_tokens, 24);
    }
  }
}

TEST_F(EngineTest, PreemptionAndPrefixSharingChangeNoToken) {
  std::vector<GenerationRequest> requests;
  const auto common = random_tokens(50, 99);
  for (int i = 0; i < 12; ++i) {
    auto prompt = common;
    const auto own = random_tokens(1 + 3 * i, i);
    prompt.insert(prompt.end(), own.begin(), own.end());
    requests.push_back(request_of(prompt, 60));
  }
  std::vector<std::vector<int32_t>> expected;
  for (const auto& request : requests) expected.push_back(greedy_by_hand(request.prompt, 60));
  for (const bool prefix_cache : {false, true}) {
    for (const auto pipeline : {EngineOptions::Pipeline::kOff, EngineOptions::Pipeline::kOn}) {
      EngineOptions options;
      options.max_length = 160;
      options.kv_bytes = 24 * page_bytes();
      options.prefix_cache = prefix_cache;
      options.pipeline = pipeline;
      const auto engine = make_engine(options);
      const auto outcomes = run_all(*engine, requests);
      for (size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(outcomes[i].tokens, expected[i]);
      const EngineStats stats = engine->stats();
      EXPECT_EQ(stats.pages, 24);
      EXPECT_EQ(stats.free_pages, 24);
      EXPECT_GT(stats.preemptions, 0);
      EXPECT_EQ(stats.cached_tokens > 0, prefix_cache);
    }
  }
}

/// Window: every unit reads its ends. Pages: it chooses 500 per mille of its pages for each token.
/// With `summaries`, units see by these what they leave out.
sparsity::Profile sparse_profile(backend::ReadKind kind, backend::PageScore score,
                                 bool summaries = false) {
  sparsity::Profile profile = sparsity::window_profile(2, 2, 1, 1, {});
  profile.page_score = score;
  for (backend::UnitBudget& budget : profile.points[1].budgets) {
    budget.kind = kind;
    budget.pages_per_mille = 500;
    budget.summaries = summaries;
  }
  return profile;
}

TEST_F(EngineTest, SparsePreemptionAndPrefixSharingAreExactToo) {
  using backend::PageScore;
  using backend::ReadKind;
  for (const auto& [kind, score, summaries] :
       {std::tuple{ReadKind::kWindow, PageScore::kMean, false},
        {ReadKind::kPages, PageScore::kMean, false},
        {ReadKind::kPages, PageScore::kCodes, false},
        {ReadKind::kWindow, PageScore::kMean, true},
        {ReadKind::kPages, PageScore::kCodes, true}}) {
    const sparsity::Profile profile = sparse_profile(kind, score, summaries);
    const std::vector<int32_t> shared = random_tokens(40, 77);
    std::vector<GenerationRequest> requests;
    for (int i = 0; i < 12; ++i) {
      std::vector<int32_t> prompt = i % 2 ? shared : std::vector<int32_t>();
      const auto own = random_tokens(40 + i - static_cast<int>(prompt.size()) / 2, i);
      prompt.insert(prompt.end(), own.begin(), own.end());
      requests.push_back(request_of(prompt, 80));
      requests.back().point = i % 4 == 3 ? 0 : 1;
    }
    EngineOptions options;
    options.max_length = 160;
    options.prefix_cache = false;
    const auto roomy = make_engine(options, &profile);
    std::vector<Outcome> alone;
    for (const auto& request : requests) alone.push_back(run_all(*roomy, {request})[0]);
    options.kv_bytes = 24 * page_bytes() + 24 * indices_bytes(profile);
    options.prefix_cache = true;
    const auto tight = make_engine(options, &profile);
    const auto together = run_all(*tight, requests);
    EXPECT_EQ(tight->stats().pages, 24);
    EXPECT_GT(tight->stats().preemptions, 0);
    EXPECT_GT(tight->stats().cached_tokens, 0);
    bool differs = false;
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(together[i].tokens, alone[i].tokens) << i;
      const Usage& usage = alone[i].usage;
      if (requests[i].point == 0) {
        EXPECT_EQ(usage.kv_bytes_read, usage.kv_bytes_dense);
        EXPECT_EQ(alone[i].tokens, greedy_by_hand(requests[i].prompt, 80));
      } else {
        EXPECT_LT(usage.kv_bytes_read, 0.8 * usage.kv_bytes_dense);
        differs |= alone[i].tokens != greedy_by_hand(requests[i].prompt, 80);
      }
    }
    EXPECT_TRUE(differs);
  }
}

TEST_F(EngineTest, CountsTheBytesThatDecodeStepsRead) {
  const auto engine = make_engine();
  const auto outcome = run_all(*engine, {request_of(random_tokens(20, 1), 30)})[0];
  // 29 decode rows at positions 20 to 48 over 2 layers and 2 KV heads.
  int blocks = 0;
  for (int position = 20; position < 49; ++position) blocks += 4 * (position / kPageTokens + 1);
  const double block = 2.0 * kPageTokens * 16 * sizeof(float);
  EXPECT_EQ(outcome.usage.kv_bytes_read, blocks * block);
  EXPECT_EQ(outcome.usage.kv_bytes_dense, blocks * block);
}

TEST_F(EngineTest, SamplesTheSameTokensForTheSameSeedInAnyBatch) {
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 10; ++i) {
    requests.push_back(request_of(random_tokens(5 + i, 3), 20));
    SamplingParams& sampling = requests.back().sampling;
    sampling.temperature = 1.3f;
    sampling.seed = i / 2;
    if (i % 3 == 0) sampling.top_p = 0.8f;
    if (i % 3 == 1) sampling.top_k = 20;
    if (i % 4 == 2) sampling.repetition_penalty = 1.3f;
    if (i % 4 == 3) sampling.frequency_penalty = 0.5f;
  }
  EngineOptions options;
  options.pipeline = EngineOptions::Pipeline::kOn;
  const auto together = run_all(*make_engine(options), requests);
  options.max_batch = 1;
  options.pipeline = EngineOptions::Pipeline::kOff;
  const auto one_by_one = run_all(*make_engine(options), requests);
  std::set<std::vector<int32_t>> different;
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(together[i].tokens, one_by_one[i].tokens) << i;
    different.insert(together[i].tokens);
  }
  EXPECT_EQ(different.size(), requests.size());
}

TEST_F(EngineTest, PenaltiesAndBiasesFollowTheirDefinition) {
  GenerationRequest request = request_of(random_tokens(9, 5), 24);
  SamplingParams& sampling = request.sampling;
  sampling.repetition_penalty = 1.4f;
  sampling.presence_penalty = 0.3f;
  sampling.frequency_penalty = 0.2f;
  sampling.logit_bias = {{3, 0.4f}, {11, -5.0f}, {3, 0.2f}};
  // By hand: transformers' repetition penalty, then OpenAI's two, then the bias.
  std::vector<int32_t> tokens = request.prompt, expected;
  for (int i = 0; i < request.max_tokens; ++i) {
    auto logits = logits_after(tokens);
    for (int token = 0; token < 211; ++token) {
      const auto in_text = std::count(tokens.begin(), tokens.end(), token);
      const auto in_output = std::count(expected.begin(), expected.end(), token);
      if (in_text > 0)
        logits[token] = logits[token] > 0 ? logits[token] / 1.4f : logits[token] * 1.4f;
      if (in_output > 0) logits[token] -= 0.3f + 0.2f * static_cast<float>(in_output);
    }
    logits[3] += 0.6f;
    logits[11] -= 5.0f;
    expected.push_back(
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    tokens.push_back(expected.back());
  }
  for (const auto pipeline : {EngineOptions::Pipeline::kOff, EngineOptions::Pipeline::kOn}) {
    EngineOptions options;
    options.pipeline = pipeline;
    EXPECT_EQ(run_all(*make_engine(options), {request})[0].tokens, expected);
  }
}

TEST_F(EngineTest, EndsWhereItShould) {
  const auto prompt = random_tokens(12, 8);
  const auto free_run = greedy_by_hand(prompt, 40);
  const int32_t end = free_run[7];
  const auto first = std::find(free_run.begin(), free_run.end(), end) - free_run.begin();
  model::ModelConfig config = small_config();
  config.eos_tokens = {end};
  make_weights(config);
  for (const auto pipeline : {EngineOptions::Pipeline::kOff, EngineOptions::Pipeline::kOn}) {
    EngineOptions options;
    options.pipeline = pipeline;
    const auto engine = make_engine(options);
    GenerationRequest until_eos = request_of(prompt, 40);
    GenerationRequest past_eos = until_eos, by_id = until_eos, not_yet = until_eos;
    past_eos.ignore_eos = true;
    by_id.ignore_eos = true;
    by_id.stop_token_ids = {end};
    not_yet.min_tokens = 20;
    const auto outcomes = run_all(*engine, {until_eos, past_eos, by_id, not_yet});
    const std::vector<int32_t> stopped(free_run.begin(), free_run.begin() + first + 1);
    EXPECT_EQ(outcomes[0].tokens, stopped);
    EXPECT_EQ(outcomes[0].finish, FinishReason::kStop);
    EXPECT_EQ(outcomes[1].tokens, free_run);
    EXPECT_EQ(outcomes[1].finish, FinishReason::kLength);
    EXPECT_EQ(outcomes[2].tokens, stopped);
    const auto& late = outcomes[3].tokens;
    EXPECT_GE(late.size(), 20u);
    EXPECT_EQ(std::count(late.begin(), late.begin() + 20, end), 0);
    EXPECT_EQ(engine->stats().free_pages, engine->stats().pages);
  }
}

TEST_F(EngineTest, ReportsLogProbabilities) {
  const auto engine = make_engine();
  GenerationRequest request = request_of(random_tokens(70, 2), 5);
  request.logprobs = 3;
  request.prompt_logprobs = 2;
  GenerationRequest only_score = request;
  only_score.max_tokens = 0;
  const auto outcomes = run_all(*engine, {request, only_score});
  ASSERT_EQ(outcomes[0].prompt.size(), 69u);
  ASSERT_EQ(outcomes[1].prompt.size(), 69u);
  EXPECT_TRUE(outcomes[1].tokens.empty());
  EXPECT_EQ(outcomes[1].finish, FinishReason::kLength);
  const auto check = [&](const std::vector<int32_t>& before, const TokenInfo& info, size_t top) {
    const auto logits = logits_after(before);
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
    EXPECT_NEAR(info.logprob, logits[info.token] - std::log(sum), 1e-4);
    ASSERT_EQ(info.top.size(), top);
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    EXPECT_EQ(info.top[0].first, best);
    for (size_t i = 1; i < top; ++i) EXPECT_GE(info.top[i - 1].second, info.top[i].second);
  };
  for (int i = 1; i < 70; i += 17) {
    const std::vector<int32_t> before(request.prompt.begin(), request.prompt.begin() + i);
    EXPECT_EQ(outcomes[0].prompt[i - 1].token, request.prompt[i]);
    check(before, outcomes[0].prompt[i - 1], 2);
    EXPECT_EQ(outcomes[0].prompt[i - 1].logprob, outcomes[1].prompt[i - 1].logprob);
  }
  auto before = request.prompt;
  for (const TokenInfo& info : outcomes[0].infos) {
    check(before, info, 3);
    before.push_back(info.token);
  }
}

TEST_F(EngineTest, CancellationFreesThePages) {
  const auto engine = make_engine();
  std::vector<std::shared_ptr<Generation>> generations;
  for (int i = 0; i < 20; ++i)
    generations.push_back(engine->submit(request_of(random_tokens(30, i), 200)).value());
  EXPECT_TRUE(generations[0]->next().has_value());
  for (auto& generation : generations) generation->cancel();
  for (auto& generation : generations)
    EXPECT_EQ(drain(*generation).finish, FinishReason::kCancelled);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.free_pages, stats.pages);
  EXPECT_EQ(stats.running + stats.waiting, 0);
  EXPECT_EQ(run_all(*engine, {request_of(random_tokens(30, 3), 4)})[0].tokens.size(), 4u);
  generations[0]->cancel();  // long over: nothing happens
}

TEST_F(EngineTest, StoppingTheEngineEndsEveryStream) {
  auto engine = make_engine();
  std::atomic<int> news = 0;
  GenerationRequest request = request_of(random_tokens(10, 1), 240);
  request.on_news = [&] { ++news; };
  const auto running = engine->submit(request).value();
  EXPECT_TRUE(running->next().has_value());
  engine.reset();
  EXPECT_NE(drain(*running).finish, FinishReason::kError);
  EXPECT_GT(news.load(), 0);
  running->cancel();
  EXPECT_FALSE(running->poll().has_value());
}

TEST_F(EngineTest, ServesManyThreads) {
  const auto engine = make_engine();
  const auto expected = greedy_by_hand(random_tokens(25, 4), 10);
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 8; ++i) {
        const auto wanted = engine->submit(request_of(random_tokens(25, 4), 10)).value();
        const auto unwanted = engine->submit(request_of(random_tokens(40, t * 8 + i), 100)).value();
        unwanted->cancel();
        right += drain(*wanted).tokens == expected;
        drain(*unwanted);
        (void)engine->stats();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(right.load(), 32);
}

TEST_F(EngineTest, RefusesWhatCannotBe) {
  const auto engine = make_engine();
  const auto refused = [&](GenerationRequest request) {
    const auto result = engine->submit(std::move(request));
    return result.ok() ? std::string("accepted") : result.error().message;
  };
  EXPECT_NE(refused(request_of({}, 5)).find("prompt: found no tokens"), std::string::npos);
  EXPECT_NE(refused(request_of({211}, 5)).find("prompt: found token 211"), std::string::npos);
  EXPECT_NE(refused(request_of({-1}, 5)).find("prompt: found token -1"), std::string::npos);
  EXPECT_NE(refused(request_of(random_tokens(256, 1), 1)).find("found 256 tokens"),
            std::string::npos);
  EXPECT_EQ(refused(request_of(random_tokens(255, 1), 1000)), "accepted");
  const auto names = [&](const char* key, auto change) {
    auto request = request_of({1}, 5);
    change(request);
    EXPECT_NE(refused(request).find(key), std::string::npos) << key;
  };
  names("temperature", [](auto& r) { r.sampling.temperature = std::nanf(""); });
  names("logprobs", [](auto& r) { r.logprobs = 21; });
  names("point", [](auto& r) { r.point = 1; });
  names("logit_bias", [](auto& r) { r.sampling.logit_bias = {{500, 1.0f}}; });
}

TEST_F(EngineTest, TheMemoryBudgetGivesThePages) {
  EngineOptions options;
  options.kv_dtype = DType::kF32;
  options.max_batch = 4;
  options.max_length = 256;
  options.kv_bytes = 15 * page_bytes();  // 16 are needed
  const auto refused = Engine::create(*device_, *weights_, nullptr, options);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("--kv-memory"), std::string::npos);
  options.max_length = 0;  // then what fits
  EXPECT_EQ(Engine::create(*device_, *weights_, nullptr, options).value()->max_length(), 240);
  options.max_length = 513;
  EXPECT_FALSE(Engine::create(*device_, *weights_, nullptr, options).ok());
}

size_t resident_bytes() {
  std::ifstream in("/proc/self/statm");
  size_t total = 0, resident = 0;
  in >> total >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

TEST_F(EngineTest, TenThousandRequestsDoNotGrowMemory) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers keep freed memory for a while, so resident memory says nothing";
#endif
  EngineOptions options;
  options.kv_bytes = 64 * page_bytes();
  const auto engine = make_engine(options);
  size_t early = 0;
  for (int round = 0; round < 250; ++round) {
    std::vector<GenerationRequest> requests;
    for (int i = 0; i < 40; ++i) {
      requests.push_back(request_of(random_tokens(1 + i % 20, round * 40 + i), 2));
      if (i % 8 == 0) requests.back().sampling.repetition_penalty = 1.1f;
    }
    run_all(*engine, requests);
    if (round == 24) early = resident_bytes();
  }
  EXPECT_EQ(engine->stats().finished, 10000);
  EXPECT_LT(resident_bytes(), early + (size_t{2} << 20));
}

}  // namespace
}  // namespace polar::engine
