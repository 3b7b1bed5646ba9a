#pragma once
// What `polar generate` writes for one line of prompts, collected while its answers come.

#include <deque>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/loaded_model.h"
#include "engine/prompt_line.h"
#include "engine/text_stream.h"

namespace polar::cli {

/// One line of the input, on its way to a line of the output.
class Answer {
 public:
  /// A line that cannot be answered: `message` begins with "line N: ".
  Answer(std::string id, std::string message) : id_(std::move(id)), error_(std::move(message)) {}
  /// A line that runs: one generation for each of its `n` answers.
  Answer(engine::PromptLine line, std::vector<int32_t> prompt,
         std::vector<std::shared_ptr<engine::Generation>> generations,
         const text::Tokenizer& tokenizer);

  /// Takes the news of all its generations in; returns how many tokens came.
  int update();
  bool done() const { return open_ == 0; }
  bool failed() const { return !error_.empty(); }
  /// The line to write, without its newline.
  std::string to_json() const;

 private:
  struct Choice {
    std::shared_ptr<engine::Generation> generation;
    engine::TextStream stream;
    std::string text;
    std::vector<engine::TokenInfo> tokens;
    std::vector<engine::TokenInfo> prompt;
    engine::Usage usage;
    const char* finish_reason = nullptr;
  };
  int take(Choice& choice, engine::Event event);
  nlohmann::ordered_json choice_json(const Choice& choice) const;

  std::string id_;
  std::string error_;
  int logprobs_ = -1, prompt_logprobs_ = -1;
  std::vector<int32_t> prompt_;
  std::vector<Choice> choices_;
  int open_ = 0;
};

}  // namespace polar::cli
