#include "text/detokenizer.h"

#include "text/decoder.h"
#include "text/tokenizer_parts.h"

namespace polar::text {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer),
      skip_special_tokens_(skip_special_tokens),
      stream_(std::make_unique<DecoderStream>(tokenizer_.parts().decoder)) {}

Detokenizer::Detokenizer(Detokenizer&&) noexcept = default;
Detokenizer& Detokenizer::operator=(Detokenizer&&) noexcept = default;
Detokenizer::~Detokenizer() = default;

std::string Detokenizer::push(TokenId id) {
  const TokenizerParts& parts = tokenizer_.parts();
  const std::string* piece = parts.piece(id);
  if (piece == nullptr || (skip_special_tokens_ && parts.is_special(id))) return std::string();
  return stream_->push(*piece);
}

std::string Detokenizer::flush() {
  return stream_->finish();
}

}  // namespace polar::text
