#include "engine/prompt_line.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

namespace polar::engine {

namespace {

using nlohmann::ordered_json;

/// The longest list of stop strings, stop ids or biases that makes sense.
constexpr size_t kMostEntries = 4096;
constexpr int kMostAnswers = 128;

class LineReader {
 public:
  LineReader(const ordered_json& object, int64_t number) : object_(object), number_(number) {}

  Error wrong(std::string_view key, const std::string& expected) const {
    std::string found = "nothing";
    if (const auto at = object_.find(key); at != object_.end()) {
      found = at->dump(-1, ' ', false, ordered_json::error_handler_t::replace);
      if (found.size() > 60) found = found.substr(0, settled(found, 60)) + "...";
    }
    return bad_input(fmt::format("line {}", number_), key, found, expected);
  }

  /// The value of a key, or null when it is not there or null.
  const ordered_json* find(std::string_view key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  Status whole(std::string_view key, int64_t low, int64_t high, int* value) const {
    const ordered_json* found = find(key);
    if (found == nullptr) return {};
    const bool fits = found->is_number_unsigned()
                          ? found->get<uint64_t>() <= static_cast<uint64_t>(high) &&
                                static_cast<int64_t>(found->get<uint64_t>()) >= low
                          : found->is_number_integer() && found->get<int64_t>() >= low &&
                                found->get<int64_t>() <= high;
    if (!fits) return wrong(key, fmt::format("a whole number from {} to {}", low, high));
    *value = found->get<int>();
    return {};
  }

  Status number(std::string_view key, float* value) const {
    const ordered_json* found = find(key);
    if (found == nullptr) return {};
    if (!found->is_number()) return wrong(key, "a number");
    *value = static_cast<float>(found->get<double>());
    if (!std::isfinite(*value)) return wrong(key, "a number that fits 32 bits");
    return {};
  }

  Status boolean(std::string_view key, bool* value) const {
    const ordered_json* found = find(key);
    if (found == nullptr) return {};
    if (!found->is_boolean()) return wrong(key, "true or false");
    *value = found->get<bool>();
    return {};
  }

  Status string(std::string_view key, std::string* value) const {
    const ordered_json* found = find(key);
    if (found == nullptr) return {};
    if (!found->is_string()) return wrong(key, "a string");
    *value = found->get<std::string>();
    return {};
  }

  Status ids(std::string_view key, size_t most, std::vector<int32_t>* value) const {
    const ordered_json* found = find(key);
    if (found == nullptr) return {};
    if (!found->is_array() || found->size() > most) return wrong(key, "an array of token ids");
    for (const auto& id : *found) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX)
        return wrong(key, "an array of token ids");
      value->push_back(id.get<int32_t>());
    }
    return {};
  }

  Status stops(std::vector<std::string>* value) const {
    const ordered_json* found = find("stop");
    if (found == nullptr) return {};
    if (found->is_string()) {
      value->push_back(found->get<std::string>());
      return {};
    }
    if (!found->is_array() || found->size() > kMostEntries)
      return wrong("stop", "a string or an array of strings");
    for (const auto& stop : *found) {
      if (!stop.is_string()) return wrong("stop", "a string or an array of strings");
      value->push_back(stop.get<std::string>());
    }
    return {};
  }

  /// {"12": -1.5}: token ids as keys, as OpenAI writes them.
  Status biases(std::vector<std::pair<int32_t, float>>* value) const {
    const ordered_json* found = find("logit_bias");
    if (found == nullptr) return {};
    const char* const expected = "an object of numbers by token id";
    if (!found->is_object() || found->size() > kMostEntries) return wrong("logit_bias", expected);
    for (const auto& [key, bias] : found->items()) {
      int32_t token = 0;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
      if (error != std::errc() || end != key.data() + key.size() || !bias.is_number())
        return wrong("logit_bias", expected);
      value->emplace_back(token, bias.get<float>());
    }
    return {};
  }

  /// How a seed is written: any whole number of 64 bits.
  Status seed(uint64_t* value) const {
    const ordered_json* found = find("seed");
    if (found == nullptr) return {};
    if (!found->is_number_integer()) return wrong("seed", "a whole number");
    *value = found->is_number_unsigned() ? found->get<uint64_t>()
                                         : static_cast<uint64_t>(found->get<int64_t>());
    return {};
  }

 private:
  /// `at`, moved back to the begin of a UTF-8 character.
  static size_t settled(const std::string& text, size_t at) {
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    return at;
  }

  const ordered_json& object_;
  int64_t number_;
};

Status read_text(const LineReader& reader, PromptLine* line) {
  const bool prompt = reader.find("prompt") != nullptr;
  const bool tokens = reader.find("tokens") != nullptr;
  const ordered_json* messages = reader.find("messages");
  if (prompt + tokens + (messages != nullptr) != 1)
    return reader.wrong("prompt", "one of prompt, messages and tokens");
  if (prompt) POLAR_RETURN_IF_ERROR(reader.string("prompt", &line->prompt.emplace()));
  if (tokens) POLAR_RETURN_IF_ERROR(reader.ids("tokens", SIZE_MAX, &line->tokens.emplace()));
  if (messages != nullptr) {
    if (!messages->is_array() || messages->empty())
      return reader.wrong("messages", "an array of messages");
    for (const auto& message : *messages) {
      if (!message.is_object() || !message.contains("role") || !message["role"].is_string())
        return reader.wrong("messages", "objects with a role and a content");
    }
    line->messages = messages->dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  }
  if (const ordered_json* tools = reader.find("tools"); tools != nullptr) {
    if (!tools->is_array()) return reader.wrong("tools", "an array");
    line->tools = tools->dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  }
  return {};
}

Status read_request(const LineReader& reader, PromptLine* line) {
  GenerationRequest& request = line->request;
  SamplingParams& sampling = request.sampling;
  POLAR_RETURN_IF_ERROR(reader.whole("max_tokens", 0, INT32_MAX, &request.max_tokens));
  POLAR_RETURN_IF_ERROR(reader.whole("min_tokens", 0, INT32_MAX, &request.min_tokens));
  POLAR_RETURN_IF_ERROR(reader.whole("top_k", -1, INT32_MAX, &sampling.top_k));
  sampling.top_k = std::max(sampling.top_k, 0);  // some write -1 for "all"
  POLAR_RETURN_IF_ERROR(reader.whole("n", 1, kMostAnswers, &line->n));
  POLAR_RETURN_IF_ERROR(reader.whole("logprobs", 0, 20, &request.logprobs));
  POLAR_RETURN_IF_ERROR(reader.whole("prompt_logprobs", 0, 20, &request.prompt_logprobs));
  POLAR_RETURN_IF_ERROR(reader.number("temperature", &sampling.temperature));
  POLAR_RETURN_IF_ERROR(reader.number("top_p", &sampling.top_p));
  POLAR_RETURN_IF_ERROR(reader.number("min_p", &sampling.min_p));
  POLAR_RETURN_IF_ERROR(reader.number("repetition_penalty", &sampling.repetition_penalty));
  POLAR_RETURN_IF_ERROR(reader.number("presence_penalty", &sampling.presence_penalty));
  POLAR_RETURN_IF_ERROR(reader.number("frequency_penalty", &sampling.frequency_penalty));
  POLAR_RETURN_IF_ERROR(reader.boolean("ignore_eos", &request.ignore_eos));
  POLAR_RETURN_IF_ERROR(reader.ids("stop_token_ids", kMostEntries, &request.stop_token_ids));
  POLAR_RETURN_IF_ERROR(reader.stops(&line->stop));
  POLAR_RETURN_IF_ERROR(reader.biases(&sampling.logit_bias));
  POLAR_RETURN_IF_ERROR(reader.seed(&sampling.seed));
  return reader.string("point", &line->point);
}

std::string id_of(const ordered_json& object, int64_t number) {
  if (object.is_object()) {
    if (const auto id = object.find("id"); id != object.end() && !id->is_null()) {
      return id->is_string() ? id->get<std::string>()
                             : id->dump(-1, ' ', false, ordered_json::error_handler_t::replace);
    }
  }
  return std::to_string(number - 1);
}

/// JSON nested deeper than anything a prompt needs is refused before it is parsed: the parser
/// itself and the destructor of what it builds may recurse.
bool too_deep(std::string_view line) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < line.size(); ++i) {
    if (in_string) {
      if (line[i] == '\\')
        ++i;
      else if (line[i] == '"')
        in_string = false;
    } else if (line[i] == '"') {
      in_string = true;
    } else if (line[i] == '[' || line[i] == '{') {
      if (++depth > 100) return true;
    } else if (line[i] == ']' || line[i] == '}') {
      --depth;
    }
  }
  return false;
}

ordered_json parse(std::string_view line) {
  if (too_deep(line)) return ordered_json(ordered_json::value_t::discarded);
  return ordered_json::parse(line, nullptr, false);
}

}  // namespace

std::string prompt_line_id(std::string_view line, int64_t number) {
  return id_of(parse(line), number);
}

Result<PromptLine> parse_prompt_line(std::string_view text, int64_t number,
                                     const SamplingParams& defaults) {
  const ordered_json object = parse(text);
  if (!object.is_object()) {
    return Error{fmt::format(
        "line {}: found {}, expected a JSON object", number,
        object.is_discarded() ? "text that is not JSON" : fmt::format("a {}", object.type_name()))};
  }
  PromptLine line;
  line.id = id_of(object, number);
  line.request.sampling = defaults;
  line.request.sampling.seed = static_cast<uint64_t>(number - 1);
  const LineReader reader(object, number);
  POLAR_RETURN_IF_ERROR(read_text(reader, &line));
  POLAR_RETURN_IF_ERROR(read_request(reader, &line));
  return line;
}

}  // namespace polar::engine
