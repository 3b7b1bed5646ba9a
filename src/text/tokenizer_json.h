#pragma once
// Reads the components of a tokenizer.json. Private to src/text.

#include "text/json_reader.h"
#include "text/tokenizer_parts.h"

namespace polar::text {

/// Sequences nested deeper than this are absurd.
inline constexpr int kMaxNesting = 16;

Status read_normalizer(const JsonView& json, Normalizer& normalizer, int depth = 0);
Status read_pre_tokenizer(const JsonView& json, PreTokenizer& pre_tokenizer, int depth = 0);
Status read_decoder(const JsonView& json, Decoder& decoder, int depth = 0);
/// Puts what `json` adds around the text into `frame`.
Status read_post_processor(const JsonView& json, std::vector<TokenId>& frame, int depth = 0);
/// `{"String": "..."}` or `{"Regex": "..."}`.
Result<ReplaceText> read_pattern(const JsonView& json);

}  // namespace polar::text
