#pragma once
// One line of a file of prompts (`polar generate --prompts`).

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "engine/request.h"

namespace polar::engine {

/// What a line asks for. Exactly one of `prompt`, `tokens` and `messages` is there.
struct PromptLine {
  std::string id;
  std::optional<std::string> prompt;
  std::optional<std::vector<int32_t>> tokens;
  std::optional<std::string> messages;  // a JSON array, as text
  std::string tools;                    // a JSON array, as text; empty: none
  std::string point;                    // name of an operating point; empty: the command's
  std::vector<std::string> stop;
  int n = 1;
  GenerationRequest request;  // all but the prompt and the point
};

/// Reads line `number` (from 1) of a file of prompts. `defaults` is what the model's makers want.
/// The message of an Error begins with "line <number>: ". Keys that mean nothing here are left
/// alone: they are the file's owner's. A line that says no id gets its number from 0.
Result<PromptLine> parse_prompt_line(std::string_view text, int64_t number,
                                     const SamplingParams& defaults);

/// The id alone, as far as the line can be read: for the answer to a bad line.
std::string prompt_line_id(std::string_view line, int64_t number);

}  // namespace polar::engine
