#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "core/error.h"
#include "model/weights.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace polar::engine {

/// A model's chat template with what it may use besides the messages: bos_token, eos_token and the
/// like.
class ChatFormat {
 public:
  /// From chat_template.jinja or tokenizer_config.json of a model's folder, or from a GGUF file's
  /// metadata. Nothing if the model has no template; an Error if it has one that cannot be read.
  static Result<std::optional<ChatFormat>> load(const model::ModelFile& file,
                                                const text::Tokenizer& tokenizer);

  /// The prompt for `messages`, an array of objects with "role" and "content". `tools` is an array
  /// or null. With `add_generation_prompt` it ends where the assistant's answer begins. Errors: the
  /// template's own refusal, or its failure. Its special tokens are in the text: encode it without
  /// adding any.
  Result<std::string> render(const nlohmann::ordered_json& messages,
                             const nlohmann::ordered_json& tools,
                             bool add_generation_prompt = true) const;

 private:
  ChatFormat(text::ChatTemplate chat_template, std::string globals)
      : template_(std::move(chat_template)), globals_(std::move(globals)) {}

  text::ChatTemplate template_;
  std::string globals_;  // a JSON object
};

}  // namespace polar::engine
