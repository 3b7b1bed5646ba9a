#include "cli/answer.h"

#include <nlohmann/json.hpp>

namespace polar::cli {

namespace {

using engine::TokenInfo;
using nlohmann::ordered_json;

ordered_json top_json(const TokenInfo& info) {
  ordered_json top = ordered_json::object();
  for (const auto& [token, logprob] : info.top) top[std::to_string(token)] = logprob;
  return top;
}

}  // namespace

Answer::Answer(engine::PromptLine line, std::vector<int32_t> prompt,
               std::vector<std::shared_ptr<engine::Generation>> generations,
               const text::Tokenizer& tokenizer)
    : id_(std::move(line.id)),
      logprobs_(line.request.logprobs),
      prompt_logprobs_(line.request.prompt_logprobs),
      prompt_(std::move(prompt)),
      open_(static_cast<int>(generations.size())) {
  for (auto& generation : generations) {
    choices_.push_back(
        {std::move(generation), engine::TextStream(tokenizer, line.stop), {}, {}, {}, {}, nullptr});
  }
}

int Answer::update() {
  int tokens = 0;
  for (Choice& choice : choices_) {
    while (choice.finish_reason == nullptr) {
      auto event = choice.generation->poll();
      if (!event) break;
      tokens += take(choice, std::move(*event));
    }
  }
  return tokens;
}

int Answer::take(Choice& choice, engine::Event event) {
  choice.prompt.insert(choice.prompt.end(), event.prompt.begin(), event.prompt.end());
  choice.usage = event.usage;
  const bool ended = event.finish == engine::FinishReason::kStop;
  int taken = 0;
  for (size_t i = 0; i < event.tokens.size() && !choice.stream.stopped(); ++i) {
    ++taken;
    choice.tokens.push_back(event.tokens[i]);
    // The token that ended the text is reported, but is no part of it.
    if (!(ended && i + 1 == event.tokens.size()))
      choice.text += choice.stream.push(event.tokens[i].token);
  }
  if (choice.stream.stopped()) {
    choice.generation->cancel();
    choice.finish_reason = "stop";
  } else if (event.finish) {
    choice.text += choice.stream.finish();
    choice.finish_reason =
        choice.stream.stopped() ? "stop" : engine::finish_reason_name(*event.finish);
  }
  choice.usage.completion_tokens = static_cast<int>(choice.tokens.size());
  if (choice.finish_reason != nullptr) --open_;
  return taken;
}

ordered_json Answer::choice_json(const Choice& choice) const {
  ordered_json tokens = ordered_json::array();
  for (const TokenInfo& info : choice.tokens) tokens.push_back(info.token);
  ordered_json json = {{"text", choice.text},
                       {"tokens", std::move(tokens)},
                       {"finish_reason", choice.finish_reason}};
  const engine::Usage& usage = choice.usage;
  json["usage"] = {{"prompt_tokens", usage.prompt_tokens},
                   {"completion_tokens", usage.completion_tokens},
                   {"cached_tokens", usage.cached_tokens},
                   {"kv_bytes_read", usage.kv_bytes_read},
                   {"kv_bytes_dense", usage.kv_bytes_dense}};
  if (prompt_logprobs_ >= 0) {
    json["prompt_tokens"] = prompt_;
    json["prompt_logprobs"] = ordered_json::array({nullptr});
    for (const TokenInfo& info : choice.prompt) json["prompt_logprobs"].push_back(info.logprob);
    if (prompt_logprobs_ > 0) {
      json["prompt_top_logprobs"] = ordered_json::array({nullptr});
      for (const TokenInfo& info : choice.prompt)
        json["prompt_top_logprobs"].push_back(top_json(info));
    }
  }
  if (logprobs_ >= 0) {
    json["logprobs"] = ordered_json::array();
    for (const TokenInfo& info : choice.tokens) json["logprobs"].push_back(info.logprob);
    if (logprobs_ > 0) {
      json["top_logprobs"] = ordered_json::array();
      for (const TokenInfo& info : choice.tokens) json["top_logprobs"].push_back(top_json(info));
    }
  }
  return json;
}

std::string Answer::to_json() const {
  ordered_json json = {{"id", id_}};
  if (failed()) {
    json["error"] = error_;
  } else {
    json.update(choice_json(choices_[0]));
    // Several answers stand in one line: the first as if it were the only one, and then all.
    for (size_t i = 0; choices_.size() > 1 && i < choices_.size(); ++i)
      json["choices"].push_back(choice_json(choices_[i]));
  }
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace polar::cli
