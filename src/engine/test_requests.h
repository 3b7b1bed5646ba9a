#pragma once
// For tests: requests of random tokens, and what an engine answers.

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace polar::engine {

inline std::vector<int32_t> random_tokens(int count, uint64_t seed, int vocabulary = 211) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocabulary);
  return tokens;
}

struct Outcome {
  std::vector<int32_t> tokens;
  std::vector<TokenInfo> infos, prompt;
  FinishReason finish = FinishReason::kError;
  Usage usage;
};

inline Outcome drain(Generation& generation) {
  Outcome outcome;
  while (const auto event = generation.next()) {
    for (const auto& info : event->tokens) {
      outcome.tokens.push_back(info.token);
      outcome.infos.push_back(info);
    }
    outcome.prompt.insert(outcome.prompt.end(), event->prompt.begin(), event->prompt.end());
    outcome.usage = event->usage;
    if (event->finish) outcome.finish = *event->finish;
  }
  return outcome;
}

inline GenerationRequest request_of(std::vector<int32_t> prompt, int max_tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  return request;
}

inline std::vector<Outcome> run_all(Engine& engine,
                                    const std::vector<GenerationRequest>& requests) {
  std::vector<std::shared_ptr<Generation>> generations;
  for (const auto& request : requests) {
    auto generation = engine.submit(request);
    EXPECT_TRUE(generation.ok()) << generation.error().message;
    generations.push_back(std::move(generation).value());
  }
  std::vector<Outcome> outcomes;
  for (const auto& generation : generations) outcomes.push_back(drain(*generation));
  return outcomes;
}

}  // namespace polar::engine
