#pragma once
// The bodies that clients send, read and checked: plain data without JSON.

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/error.h"
#include "engine/request.h"

namespace polar::serve {

/// An answer that refuses: OpenAI's error object.
struct ApiError {
  int status = 400;
  std::string message;
  std::string param;  // the field that is wrong; empty: none
  std::string code;
  /// {"error": {"message", "type", "param", "code"}}
  std::string json() const;
};

template <typename T>
using ApiResult = std::variant<T, ApiError>;

/// The error of a request that the engine refused: "request: <field>: found ..., expected ...".
ApiError from_engine(const Error& error);

using Prompt = std::variant<std::string, std::vector<int32_t>>;

/// POST /v1/completions and /v1/chat/completions.
struct CompletionRequest {
  bool chat = false;
  std::vector<Prompt> prompts;        // of completions, at least one
  std::string messages, tools;        // of chats: JSON arrays as text; tools may be empty
  std::string model;                  // empty: any
  std::string point;                  // empty: the server's
  engine::GenerationRequest request;  // all but prompt, point and on_news
  std::vector<std::string> stop;
  std::optional<uint64_t> seed;
  int n = 1;
  bool echo = false, stream = false, include_usage = false;
  bool add_special_tokens = true, skip_special_tokens = true;
};

/// `defaults`: what the model's makers want. Unknown fields are left alone.
ApiResult<CompletionRequest> parse_completion(std::string_view body, bool chat,
                                              const engine::SamplingParams& defaults);

/// POST /tokenize: a prompt, or messages for the chat template.
struct TokenizeRequest {
  std::optional<std::string> prompt;
  std::string messages, tools;
  bool add_special_tokens = true;
};
ApiResult<TokenizeRequest> parse_tokenize(std::string_view body);

/// POST /detokenize: its token ids.
ApiResult<std::vector<int32_t>> parse_detokenize(std::string_view body);

}  // namespace polar::serve
