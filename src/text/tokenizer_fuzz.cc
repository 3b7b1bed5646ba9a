// Any bytes as a tokenizer and a text, separated by byte 0x1E. Either the tokenizer is refused with
// one sentence, or it encodes and decodes the text, and the stream of pieces agrees with the whole.
// What begins with "G" is a GGUF vocabulary, one field a line; all else is a tokenizer.json.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

using polar::text::Detokenizer;
using polar::text::GgufVocab;
using polar::text::TokenId;
using polar::text::Tokenizer;

namespace {

void check_sentence(const std::string& message) {
  POLAR_CHECK(!message.empty() && message.size() < 2000);
  POLAR_CHECK(message.find('\n') == std::string::npos);
}

void use(const Tokenizer& tokenizer, std::string_view text) {
  for (const bool special : {false, true}) {
    const std::vector<TokenId> ids = tokenizer.encode(text, special);
    for (TokenId id : ids) POLAR_CHECK(id >= 0 && id < tokenizer.vocab_size());
    const std::string decoded = tokenizer.decode(ids, special);
    POLAR_CHECK(polar::text::is_valid_utf8(decoded));
    Detokenizer detokenizer(tokenizer, special);
    std::string streamed;
    for (TokenId id : ids) {
      const std::string part = detokenizer.push(id);
      POLAR_CHECK(polar::text::is_valid_utf8(part));
      streamed += part;
      tokenizer.token_bytes(id);
    }
    POLAR_CHECK(streamed + detokenizer.flush() == decoded);
  }
}

// "G", the model's name, then lines: t<type><token>, m<merge>, p<pre>.
polar::Result<Tokenizer> from_lines(std::string_view data) {
  GgufVocab vocab;
  bool first = true;
  while (!data.empty()) {
    const std::string_view line = data.substr(0, data.find('\n'));
    data.remove_prefix(std::min(data.size(), line.size() + 1));
    if (first) {
      vocab.model = line.substr(1);
      first = false;
    } else if (line.starts_with('t') && line.size() > 1) {
      vocab.types.push_back(line[1] - '0');
      vocab.tokens.push_back(line.substr(2));
      if (vocab.model == "llama") vocab.scores.push_back(-static_cast<float>(vocab.scores.size()));
    } else if (line.starts_with('m')) {
      vocab.merges.push_back(line.substr(1));
    } else if (line.starts_with('p')) {
      vocab.pre = line.substr(1);
    }
  }
  vocab.bos = 0;
  return Tokenizer::from_gguf(vocab, "fuzz");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t cut = std::min(all.find('\x1E'), all.size());
  const std::string_view head = all.substr(0, cut);
  const std::string_view text = all.substr(std::min(cut + 1, all.size()));
  const auto tokenizer =
      head.starts_with('G') ? from_lines(head) : Tokenizer::from_json(head, "fuzz");
  if (tokenizer.ok()) {
    use(*tokenizer, text);
  } else {
    check_sentence(tokenizer.error().message);
  }
  return 0;
}
