#include "serve/answer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace polar::serve {

namespace {

using engine::TokenInfo;
using nlohmann::ordered_json;

std::string dump(const ordered_json& json) {
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

int characters(const std::string& text) {
  return static_cast<int>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

double seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

CompletionAnswer::CompletionAnswer(CompletionRequest request, std::string id, std::string model,
                                   const text::Tokenizer& tokenizer, ServerMetrics& metrics,
                                   std::shared_ptr<HttpResponder> responder)
    : request_(std::move(request)),
      id_(std::move(id)),
      model_(std::move(model)),
      tokenizer_(tokenizer),
      metrics_(metrics),
      responder_(std::move(responder)),
      created_(std::chrono::duration_cast<std::chrono::seconds>(
                   std::chrono::system_clock::now().time_since_epoch())
                   .count()) {}

void CompletionAnswer::add_choice(std::shared_ptr<engine::Generation> generation,
                                  const Prompt& prompt, const std::vector<int32_t>& tokens) {
  Choice choice{std::move(generation),
                engine::TextStream(tokenizer_, request_.stop, request_.skip_special_tokens),
                {},
                {},
                {},
                {},
                {},
                0,
                {},
                {},
                0,
                nullptr,
                {},
                false};
  if (request_.echo) {
    const auto* text = std::get_if<std::string>(&prompt);
    choice.echo = text != nullptr ? *text : tokenizer_.decode(tokens, false);
    if (request_.request.logprobs >= 0) choice.echo_tokens = tokens;
  }
  choices_.push_back(std::move(choice));
  last_.push_back(arrived_);
  ++open_;
}

void CompletionAnswer::begin() {
  if (request_.stream) responder_->begin(200, "text/event-stream; charset=utf-8");
}

void CompletionAnswer::cancel() {
  for (Choice& choice : choices_) {
    if (choice.finish == nullptr) choice.generation->cancel();
  }
}

bool CompletionAnswer::pump() {
  *scheduled = false;
  for (size_t i = 0; i < choices_.size() && !over_; ++i) {
    Choice& choice = choices_[i];
    bool news = false;
    while (choice.finish == nullptr) {
      auto event = choice.generation->poll();
      if (!event) break;
      news = true;
      take(choice, std::move(*event));
    }
    if (news && request_.stream) stream_choice(i);
  }
  if (open_ == 0 && !over_) finish();
  return over_;
}

void CompletionAnswer::count(Choice& choice, size_t tokens) {
  if (tokens == 0) return;
  const auto now = Clock::now();
  auto& last = last_[static_cast<size_t>(&choice - choices_.data())];
  if (choice.completion_tokens == 0) {
    metrics_.first_token.add(seconds(now - arrived_));
    --tokens;
  }
  if (tokens > 0)
    metrics_.inter_token.add(seconds(now - last) / static_cast<double>(tokens),
                             static_cast<int64_t>(tokens));
  last = now;
}

void CompletionAnswer::take(Choice& choice, engine::Event event) {
  count(choice, event.tokens.size());
  choice.usage = event.usage;
  choice.read.add(event.read);
  choice.prompt.insert(choice.prompt.end(), std::make_move_iterator(event.prompt.begin()),
                       std::make_move_iterator(event.prompt.end()));
  const bool ended = event.finish == engine::FinishReason::kStop;
  for (size_t i = 0; i < event.tokens.size() && !choice.stream.stopped(); ++i) {
    ++choice.completion_tokens;
    // The token that ended the text is counted, but is no part of it.
    if (!(ended && i + 1 == event.tokens.size()))
      choice.text += choice.stream.push(event.tokens[i].token);
    if (request_.request.logprobs >= 0) choice.tokens.push_back(std::move(event.tokens[i]));
  }
  if (choice.stream.stopped()) {
    choice.generation->cancel();
    choice.finish = "stop";
  } else if (event.finish) {
    choice.text += choice.stream.finish();
    choice.finish = choice.stream.stopped() ? "stop" : engine::finish_reason_name(*event.finish);
    choice.error = event.error;
    if (event.finish == engine::FinishReason::kCancelled) choice.error = "The request was ended.";
  }
  if (choice.finish == nullptr) return;
  --open_;
  if (!choice.error.empty()) return;
  ++metrics_.succeeded[std::string_view(choice.finish) == "length"];
  const engine::Usage& usage = choice.usage;
  metrics_.queue.add(usage.queue_seconds);
  metrics_.prefill.add(usage.prefill_seconds);
  metrics_.decode.add(usage.decode_seconds);
  if (choice.completion_tokens > 0)
    metrics_.first_token_steps.add(static_cast<double>(usage.first_token_steps));
}

std::string CompletionAnswer::token_text(int32_t token) const {
  std::string bytes = tokenizer_.token_bytes(token);
  // A part of a character is no text: it is written as OpenAI writes it.
  if (dump(bytes).find("\xEF\xBF\xBD") == std::string::npos) return bytes;
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "bytes:";
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    out += "\\x";
    out += kHex[byte >> 4];
    out += kHex[byte & 15];
  }
  return out;
}

ordered_json CompletionAnswer::completion_logprobs(Choice& choice) {
  ordered_json json = {{"text_offset", ordered_json::array()},
                       {"token_logprobs", ordered_json::array()},
                       {"tokens", ordered_json::array()},
                       {"top_logprobs", ordered_json::array()}};
  const auto add = [&](int32_t token, const TokenInfo* info) {
    const std::string text = token_text(token);
    json["text_offset"].push_back(choice.offset);
    json["tokens"].push_back(text);
    choice.offset += characters(text);
    json["token_logprobs"].push_back(info == nullptr ? ordered_json()
                                                     : ordered_json(info->logprob));
    ordered_json top;
    if (info != nullptr) {
      top = ordered_json::object();
      for (const auto& [other, logprob] : info->top) top.emplace(token_text(other), logprob);
      top.emplace(text, info->logprob);
    }
    json["top_logprobs"].push_back(std::move(top));
  };
  if (!choice.begun && !choice.echo_tokens.empty()) add(choice.echo_tokens[0], nullptr);
  for (const TokenInfo& info : choice.prompt) add(info.token, &info);
  for (const TokenInfo& info : choice.tokens) add(info.token, &info);
  return json;
}

ordered_json CompletionAnswer::chat_logprobs(Choice& choice) const {
  ordered_json content = ordered_json::array();
  const auto entry = [&](int32_t token, float logprob) {
    const std::string bytes = tokenizer_.token_bytes(token);
    ordered_json list = ordered_json::array();
    for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
    return ordered_json{
        {"token", token_text(token)}, {"logprob", logprob}, {"bytes", std::move(list)}};
  };
  for (const TokenInfo& info : choice.tokens) {
    ordered_json one = entry(info.token, info.logprob);
    one["top_logprobs"] = ordered_json::array();
    for (const auto& [token, logprob] : info.top)
      one["top_logprobs"].push_back(entry(token, logprob));
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}};
}

ordered_json CompletionAnswer::logprobs(Choice& choice) {
  if (request_.request.logprobs < 0) return {};
  ordered_json json = request_.chat ? chat_logprobs(choice) : completion_logprobs(choice);
  choice.prompt.clear();
  choice.tokens.clear();
  return json;
}

/// What each unit read since this was last asked, as [layer][kv_head] and [layer].
ordered_json CompletionAnswer::trace(Choice& choice) const {
  const engine::ReadTrace read = std::exchange(choice.read, {});
  ordered_json pages = ordered_json::array();
  const size_t heads = read.dense.empty() ? 0 : read.pages.size() / read.dense.size();
  for (size_t layer = 0; layer < read.dense.size(); ++layer) {
    const auto begin = read.pages.begin() + static_cast<ptrdiff_t>(layer * heads);
    pages.push_back(std::vector<int64_t>(begin, begin + static_cast<ptrdiff_t>(heads)));
  }
  return {{"rows", read.rows}, {"pages_read", std::move(pages)}, {"pages_dense", read.dense}};
}

ordered_json CompletionAnswer::usage() const {
  int64_t prompt = 0, completion = 0, cached = 0;
  double read = 0, dense = 0, decode = 0;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    if (i % static_cast<size_t>(request_.n) == 0) {  // answers to one prompt count it once
      prompt += choice.usage.prompt_tokens;
      cached += choice.usage.cached_tokens;
    }
    completion += choice.completion_tokens;
    read += choice.usage.kv_bytes_read;
    dense += choice.usage.kv_bytes_dense;
    decode = std::max(decode, choice.usage.decode_seconds);
  }
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion},
          {"prompt_tokens_details", {{"cached_tokens", cached}}},
          {"polar",
           {{"point", request_.point},
            {"kv_bytes_read", read},
            {"kv_bytes_dense", dense},
            {"kv_density", dense > 0 ? read / dense : 1.0},
            {"decode_seconds", decode}}}};
}

ordered_json CompletionAnswer::envelope(bool chunk) const {
  const char* const object = !request_.chat ? "text_completion"
                             : chunk        ? "chat.completion.chunk"
                                            : "chat.completion";
  return {{"id", id_},
          {"object", object},
          {"created", created_},
          {"model", model_},
          {"choices", ordered_json::array()}};
}

ordered_json CompletionAnswer::choice_json(size_t index, bool chunk) {
  Choice& choice = choices_[index];
  ordered_json json = {{"index", index}};
  std::string text = std::exchange(choice.text, {});
  if (!request_.chat) {
    json["text"] = choice.begun ? text : choice.echo + text;
  } else if (chunk) {
    json["delta"] = ordered_json::object();
    if (!choice.begun) json["delta"]["role"] = "assistant";
    if (!choice.begun || !text.empty()) json["delta"]["content"] = text;
  } else {
    json["message"] = {{"role", "assistant"}, {"content", text}};
  }
  json["logprobs"] = logprobs(choice);
  json["finish_reason"] = choice.finish == nullptr ? ordered_json() : ordered_json(choice.finish);
  if (request_.request.trace) json["polar"] = {{"point", request_.point}, {"trace", trace(choice)}};
  choice.begun = true;
  return json;
}

void CompletionAnswer::event(const ordered_json& json) {
  responder_->write("data: " + dump(json) + "\n\n");
}

void CompletionAnswer::stream_choice(size_t index) {
  const Choice& choice = choices_[index];
  if (!choice.error.empty()) {
    event(ordered_json::parse(ApiError{500, choice.error, "", "engine"}.json()));
    return;
  }
  const bool has_logprobs = !choice.tokens.empty() || !choice.prompt.empty();
  if (choice.text.empty() && !has_logprobs && choice.finish == nullptr) return;
  ordered_json chunk = envelope(true);
  chunk["choices"].push_back(choice_json(index, true));
  if (request_.include_usage) chunk["usage"] = nullptr;
  event(chunk);
}

void CompletionAnswer::finish() {
  over_ = true;
  metrics_.end_to_end.add(seconds(Clock::now() - arrived_));
  if (request_.stream) {
    if (request_.include_usage) {
      ordered_json chunk = envelope(true);
      chunk["usage"] = usage();
      event(chunk);
    }
    responder_->write("data: [DONE]\n\n");
    responder_->end();
    return;
  }
  for (const Choice& choice : choices_) {
    if (choice.error.empty()) continue;
    responder_->send(500, "application/json", ApiError{500, choice.error, "", "engine"}.json());
    return;
  }
  ordered_json json = envelope(false);
  for (size_t i = 0; i < choices_.size(); ++i) json["choices"].push_back(choice_json(i, false));
  json["usage"] = usage();
  responder_->send(200, "application/json", dump(json));
}

}  // namespace polar::serve
