#include "serve/api_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

namespace polar::serve {

namespace {

using nlohmann::ordered_json;

constexpr size_t kMostEntries = 4096;  // stop strings, stop ids, biases
constexpr size_t kMostPrompts = 1024;
constexpr int kMostAnswers = 128;
constexpr int kMostTokens = 1 << 30;
constexpr int kMostDepth = 100;

std::string text_of(const ordered_json& json) {
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

/// JSON nested deeper than any request needs is refused before it is parsed: what destroys it may
/// recurse.
bool too_deep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (in_string) {
      if (text[i] == '\\')
        ++i;
      else if (text[i] == '"')
        in_string = false;
    } else if (text[i] == '"') {
      in_string = true;
    } else if (text[i] == '[' || text[i] == '{') {
      if (++depth > kMostDepth) return true;
    } else if (text[i] == ']' || text[i] == '}') {
      --depth;
    }
  }
  return false;
}

/// Reads fields of one object; the first that is wrong is kept and the later ones do nothing.
class Fields {
 public:
  explicit Fields(const ordered_json& object) : object_(object) {}

  std::optional<ApiError> error;

  const ordered_json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  void wrong(const char* key, const std::string& expected) {
    if (error) return;
    const ordered_json* value = find(key);
    std::string found = value == nullptr         ? "nothing"
                        : value->is_structured() ? value->type_name()
                        : value->is_string() && value->get_ref<const std::string&>().size() > 60
                            ? "a long string"
                            : text_of(*value);
    error = ApiError{400, fmt::format("{}: found {}, expected {}", key, found, expected), key,
                     "invalid_value"};
  }

  void whole(const char* key, int64_t low, int64_t high, int* out) {
    const ordered_json* value = find(key);
    if (value == nullptr) return;
    const bool fits = value->is_number_unsigned()
                          ? value->get<uint64_t>() <= static_cast<uint64_t>(high) &&
                                static_cast<int64_t>(value->get<uint64_t>()) >= low
                          : value->is_number_integer() && value->get<int64_t>() >= low &&
                                value->get<int64_t>() <= high;
    if (!fits) return wrong(key, fmt::format("a whole number from {} to {}", low, high));
    *out = value->get<int>();
  }
  void number(const char* key, double low, double high, float* out) {
    const ordered_json* value = find(key);
    if (value == nullptr) return;
    const double number = value->is_number() ? value->get<double>() : NAN;
    if (!(number >= low && number <= high))
      return wrong(key, fmt::format("a number from {} to {}", low, high));
    *out = static_cast<float>(number);
  }
  void boolean(const char* key, bool* out) {
    const ordered_json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_boolean()) return wrong(key, "true or false");
    *out = value->get<bool>();
  }
  void string(const char* key, std::string* out) {
    const ordered_json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_string()) return wrong(key, "a string");
    *out = value->get<std::string>();
  }
  static bool is_id(const ordered_json& value) {
    return value.is_number_unsigned() && value.get<uint64_t>() <= INT32_MAX;
  }
  static bool is_ids(const ordered_json& value) {
    return value.is_array() && std::all_of(value.begin(), value.end(), is_id);
  }
  void ids(const char* key, size_t most, std::vector<int32_t>* out) {
    const ordered_json* value = find(key);
    if (value == nullptr) return;
    if (!is_ids(*value) || value->size() > most) return wrong(key, "an array of token ids");
    *out = value->get<std::vector<int32_t>>();
  }

 private:
  const ordered_json& object_;
};

void read_stop(Fields& fields, std::vector<std::string>* stops) {
  const ordered_json* value = fields.find("stop");
  if (value == nullptr) return;
  const char* const expected = "a string or an array of strings";
  if (value->is_string()) {
    stops->push_back(value->get<std::string>());
    return;
  }
  if (!value->is_array() || value->size() > kMostEntries) return fields.wrong("stop", expected);
  for (const auto& stop : *value) {
    if (!stop.is_string()) return fields.wrong("stop", expected);
    stops->push_back(stop.get<std::string>());
  }
}

void read_biases(Fields& fields, std::vector<std::pair<int32_t, float>>* biases) {
  const ordered_json* value = fields.find("logit_bias");
  if (value == nullptr) return;
  const char* const expected = "an object of numbers from -100 to 100 by token id";
  if (!value->is_object() || value->size() > kMostEntries)
    return fields.wrong("logit_bias", expected);
  for (const auto& [key, bias] : value->items()) {
    int32_t token = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (error != std::errc() || end != key.data() + key.size() || !bias.is_number() ||
        !(std::abs(bias.get<double>()) <= 100))
      return fields.wrong("logit_bias", expected);
    biases->emplace_back(token, bias.get<float>());
  }
}

void read_sampling(Fields& fields, CompletionRequest* out) {
  engine::GenerationRequest& request = out->request;
  engine::SamplingParams& sampling = request.sampling;
  fields.whole("min_tokens", 0, kMostTokens, &request.min_tokens);
  fields.whole("top_k", -1, INT32_MAX, &sampling.top_k);
  sampling.top_k = std::max(sampling.top_k, 0);  // -1 says "all" too
  fields.whole("n", 1, kMostAnswers, &out->n);
  fields.number("temperature", 0, 100, &sampling.temperature);
  fields.number("top_p", 0, 1, &sampling.top_p);
  fields.number("min_p", 0, 1, &sampling.min_p);
  fields.number("repetition_penalty", 0, 100, &sampling.repetition_penalty);
  fields.number("presence_penalty", -2, 2, &sampling.presence_penalty);
  fields.number("frequency_penalty", -2, 2, &sampling.frequency_penalty);
  fields.boolean("ignore_eos", &request.ignore_eos);
  fields.ids("stop_token_ids", kMostEntries, &request.stop_token_ids);
  fields.boolean("skip_special_tokens", &out->skip_special_tokens);
  read_stop(fields, &out->stop);
  read_biases(fields, &sampling.logit_bias);
  if (const ordered_json* seed = fields.find("seed"); seed != nullptr) {
    if (!seed->is_number_integer()) return fields.wrong("seed", "a whole number");
    out->seed = seed->is_number_unsigned() ? seed->get<uint64_t>()
                                           : static_cast<uint64_t>(seed->get<int64_t>());
  }
}

void read_stream(Fields& fields, CompletionRequest* out) {
  fields.boolean("stream", &out->stream);
  if (const ordered_json* options = fields.find("stream_options"); options != nullptr) {
    if (!options->is_object()) return fields.wrong("stream_options", "an object");
    Fields inner(*options);
    inner.boolean("include_usage", &out->include_usage);
    if (inner.error) fields.wrong("stream_options", "include_usage: true or false");
  }
}

void read_polar(Fields& fields, CompletionRequest* out) {
  const ordered_json* polar = fields.find("polar");
  if (polar == nullptr) return;
  if (!polar->is_object()) return fields.wrong("polar", "an object");
  Fields inner(*polar);
  inner.string("point", &out->point);
  inner.boolean("trace", &out->request.trace);
  if (inner.error) fields.wrong("polar", "a point that is a string, a trace that is a boolean");
}

/// What is asked for and cannot be given is refused, not ignored.
void refuse_what_is_not_there(Fields& fields, int n) {
  if (const ordered_json* format = fields.find("response_format"); format != nullptr) {
    if (!format->is_object() || format->value("type", ordered_json("text")) != "text")
      fields.wrong("response_format", "type \"text\": constrained output is not supported");
  }
  for (const char* key : {"guided_json", "guided_regex", "guided_choice", "guided_grammar"}) {
    if (fields.find(key) != nullptr) fields.wrong(key, "nothing: constrained output is not there");
  }
  if (const ordered_json* suffix = fields.find("suffix");
      suffix != nullptr && *suffix != ordered_json(""))
    fields.wrong("suffix", "nothing: insertion is not supported");
  if (const ordered_json* best = fields.find("best_of");
      best != nullptr && *best != ordered_json(n))
    fields.wrong("best_of", "the value of n");
}

void read_prompts(Fields& fields, CompletionRequest* out) {
  const ordered_json* prompt = fields.find("prompt");
  const char* const expected =
      "a string, an array of strings, an array of token ids, or an array of those";
  if (prompt == nullptr) return fields.wrong("prompt", expected);
  if (prompt->is_string()) {
    out->prompts.emplace_back(prompt->get<std::string>());
  } else if (Fields::is_ids(*prompt) && !prompt->empty()) {
    out->prompts.emplace_back(prompt->get<std::vector<int32_t>>());
  } else if (prompt->is_array() && !prompt->empty() && prompt->size() <= kMostPrompts) {
    for (const auto& one : *prompt) {
      if (one.is_string())
        out->prompts.emplace_back(one.get<std::string>());
      else if (Fields::is_ids(one))
        out->prompts.emplace_back(one.get<std::vector<int32_t>>());
      else
        return fields.wrong("prompt", expected);
    }
  } else {
    fields.wrong("prompt", expected);
  }
}

/// Chat templates know contents that are text: one of text parts becomes one text, a part a line.
/// False where it is something else, an image perhaps.
bool make_text(ordered_json& content) {
  if (content.is_null() || content.is_string()) return true;
  if (!content.is_array()) return false;
  std::string text;
  for (const auto& part : content) {
    const bool is_text = part.is_object() && part.value("type", ordered_json()) == "text" &&
                         part.value("text", ordered_json()).is_string();
    if (!is_text) return false;
    if (&part != &content.front()) text += '\n';
    text += part["text"].get_ref<const std::string&>();
  }
  content = std::move(text);
  return true;
}

void read_messages(Fields& fields, std::string* messages, std::string* tools) {
  const ordered_json* found = fields.find("messages");
  const auto is_message = [](const ordered_json& message) {
    return message.is_object() && message.contains("role") && message["role"].is_string();
  };
  if (found == nullptr || !found->is_array() || found->empty() ||
      !std::all_of(found->begin(), found->end(), is_message))
    return fields.wrong("messages", "an array of objects with a role and a content");
  ordered_json texts = *found;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].contains("content") && !make_text(texts[i]["content"]))
      return fields.wrong("messages",
                          fmt::format("a string or an array of text parts at [{}].content", i));
  }
  *messages = text_of(texts);
  if (const ordered_json* list = fields.find("tools"); list != nullptr) {
    const auto is_object = [](const ordered_json& tool) { return tool.is_object(); };
    if (!list->is_array() || !std::all_of(list->begin(), list->end(), is_object))
      return fields.wrong("tools", "an array of objects");
    if (!list->empty()) *tools = text_of(*list);
  }
}

void read_completion_limits(Fields& fields, CompletionRequest* out) {
  read_prompts(fields, out);
  fields.whole("max_tokens", 0, kMostTokens, &out->request.max_tokens);
  fields.whole("logprobs", 0, 20, &out->request.logprobs);
  fields.boolean("echo", &out->echo);
  fields.boolean("add_special_tokens", &out->add_special_tokens);
  if (out->echo) out->request.prompt_logprobs = out->request.logprobs;
  if (out->request.max_tokens == 0 && !out->echo)
    fields.wrong("max_tokens", "at least 1 without echo");
}

void read_chat_limits(Fields& fields, CompletionRequest* out) {
  read_messages(fields, &out->messages, &out->tools);
  out->request.max_tokens = kMostTokens;  // the engine cuts it to what fits
  fields.whole("max_tokens", 1, kMostTokens, &out->request.max_tokens);
  fields.whole("max_completion_tokens", 1, kMostTokens, &out->request.max_tokens);
  bool logprobs = false;
  int top = 0;
  fields.boolean("logprobs", &logprobs);
  fields.whole("top_logprobs", 0, 20, &top);
  if (top > 0 && !logprobs) fields.wrong("top_logprobs", "logprobs: true beside it");
  if (logprobs) out->request.logprobs = top;
}

ApiResult<ordered_json> parse_object(std::string_view body) {
  if (too_deep(body))
    return ApiError{400, fmt::format("The body is nested deeper than {} levels.", kMostDepth), "",
                    "invalid_json"};
  ordered_json json = ordered_json::parse(body, nullptr, false);
  if (json.is_discarded()) return ApiError{400, "The body is not JSON.", "", "invalid_json"};
  if (!json.is_object()) return ApiError{400, "The body is not a JSON object.", "", "invalid_json"};
  return json;
}

}  // namespace

std::string ApiError::json() const {
  const char* const type = status >= 500   ? "server_error"
                           : status == 401 ? "authentication_error"
                           : status == 404 ? "not_found_error"
                           : status == 429 ? "rate_limit_error"
                                           : "invalid_request_error";
  const auto or_null = [](const std::string& text) {
    return text.empty() ? ordered_json() : ordered_json(text);
  };
  return text_of({{"error",
                   {{"message", message},
                    {"type", type},
                    {"param", or_null(param)},
                    {"code", or_null(code)}}}});
}

ApiError from_engine(const Error& error) {
  ApiError api{400, error.message, "", "invalid_value"};
  constexpr std::string_view kBegin = "request: ";
  if (api.message.starts_with(kBegin)) {
    api.message.erase(0, kBegin.size());
    api.param = api.message.substr(0, api.message.find(':'));
  }
  return api;
}

ApiResult<CompletionRequest> parse_completion(std::string_view body, bool chat,
                                              const engine::SamplingParams& defaults) {
  auto parsed = parse_object(body);
  if (auto* error = std::get_if<ApiError>(&parsed)) return std::move(*error);
  const auto& object = std::get<ordered_json>(parsed);
  CompletionRequest request;
  request.chat = chat;
  request.request.sampling = defaults;
  Fields fields(object);
  fields.string("model", &request.model);
  chat ? read_chat_limits(fields, &request) : read_completion_limits(fields, &request);
  read_sampling(fields, &request);
  read_stream(fields, &request);
  read_polar(fields, &request);
  refuse_what_is_not_there(fields, request.n);
  if (!chat && request.prompts.size() * static_cast<size_t>(request.n) > kMostPrompts)
    fields.wrong("n", fmt::format("at most {} answers in all", kMostPrompts));
  if (fields.error) return *fields.error;
  return request;
}

ApiResult<TokenizeRequest> parse_tokenize(std::string_view body) {
  auto parsed = parse_object(body);
  if (auto* error = std::get_if<ApiError>(&parsed)) return std::move(*error);
  Fields fields(std::get<ordered_json>(parsed));
  TokenizeRequest request;
  if (fields.find("messages") != nullptr) {
    read_messages(fields, &request.messages, &request.tools);
  } else {
    if (fields.find("prompt") == nullptr) fields.wrong("prompt", "a string");
    fields.string("prompt", &request.prompt.emplace());
  }
  fields.boolean("add_special_tokens", &request.add_special_tokens);
  if (fields.error) return *fields.error;
  return request;
}

ApiResult<std::vector<int32_t>> parse_detokenize(std::string_view body) {
  auto parsed = parse_object(body);
  if (auto* error = std::get_if<ApiError>(&parsed)) return std::move(*error);
  Fields fields(std::get<ordered_json>(parsed));
  std::vector<int32_t> tokens;
  if (fields.find("tokens") == nullptr) fields.wrong("tokens", "an array of token ids");
  fields.ids("tokens", SIZE_MAX, &tokens);
  if (fields.error) return *fields.error;
  return tokens;
}

}  // namespace polar::serve
