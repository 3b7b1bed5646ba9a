// Tokenizers inside GGUF files. A file names its pre-tokenizer; the names and their patterns are
// those of llama.cpp (src/llama-vocab.cpp), which defines the format. Token types 1 to 6 are
// normal, unknown, control, user-defined, unused and byte.

#include <algorithm>
#include <cmath>

#include "text/tokenizer.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

namespace polar::text {
namespace {

constexpr int32_t kUnknownType = 2, kControlType = 3, kUserDefinedType = 4;

#define POLAR_CONTRACTIONS_ "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define POLAR_WORDS_ "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define POLAR_REST_ "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
constexpr const char* kGpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)";
constexpr const char* kLlama3 = POLAR_CONTRACTIONS_ POLAR_WORDS_ "|\\p{N}{1,3}" POLAR_REST_;
constexpr const char* kQwen2 = POLAR_CONTRACTIONS_ POLAR_WORDS_ "|\\p{N}" POLAR_REST_;
#undef POLAR_CONTRACTIONS_
#undef POLAR_WORDS_
#undef POLAR_REST_
constexpr const char* kTekken =
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|"
    "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

struct PreKind {
  std::vector<const char*> names;
  std::vector<const char*> patterns;  // one split after the other
  bool ignore_merges = false;
  bool add_bos = false;
  bool nfc = false;  // the published tokenizer.json of these models normalises
};

const std::vector<PreKind>& pre_kinds() {
  static const std::vector<PreKind> kinds = {
      {{"default"}, {"[\\p{P}\\$\\+<=>\\^~\\|]+", kGpt2, "\\p{N}+", "[0-9][0-9][0-9]"}},
      {{"gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "gigachat", "mellum"}, {kGpt2}},
      {{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
       {"\\p{N}", kGpt2}},
      {{"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2"}, {kLlama3}, true, true},
      {{"dbrx", "smaug-bpe"}, {kLlama3}},
      {{"qwen2", "deepseek-r1-qwen", "megrez"}, {kQwen2}, false, false, true},
      {{"stablelm2"}, {kQwen2}},
      {{"tekken"}, {kTekken}, true, true},
      {{"falcon"}, {"[\\p{P}\\$\\+<=>\\^~\\|`]+", kGpt2, "[0-9][0-9][0-9]"}},
  };
  return kinds;
}

Result<const PreKind*> find_pre_kind(std::string_view name, const std::string& where) {
  if (name.empty()) name = "default";
  std::string known;
  for (const PreKind& kind : pre_kinds()) {
    for (const char* one : kind.names) {
      if (name == one) return &kind;
      known += (known.empty() ? "" : ", ") + std::string(one);
    }
  }
  return bad_input(where, "tokenizer.ggml.pre", "\"" + std::string(name.substr(0, 80)) + "\"",
                   "one of " + known);
}

int32_t type_of(const GgufVocab& vocab, size_t id) {
  return vocab.types.empty() ? 1 : vocab.types[id];
}

Status check_counts(const GgufVocab& vocab, const std::string& where) {
  const size_t count = vocab.tokens.size();
  if (count == 0 || count > kMaxVocabulary) {
    return bad_input(where, "tokenizer.ggml.tokens", std::to_string(count) + " tokens",
                     "1 to " + std::to_string(kMaxVocabulary));
  }
  if (!vocab.types.empty() && vocab.types.size() != count) {
    return bad_input(where, "tokenizer.ggml.token_type", std::to_string(vocab.types.size()),
                     std::to_string(count) + " types, as many as tokens");
  }
  if (!vocab.scores.empty() && vocab.scores.size() != count) {
    return bad_input(where, "tokenizer.ggml.scores", std::to_string(vocab.scores.size()),
                     std::to_string(count) + " scores, as many as tokens");
  }
  const std::pair<const char*, std::optional<int64_t>> ids[] = {
      {"tokenizer.ggml.bos_token_id", vocab.bos},
      {"tokenizer.ggml.eos_token_id", vocab.eos},
      {"tokenizer.ggml.unknown_token_id", vocab.unknown}};
  for (const auto& [key, id] : ids) {
    if (id && (*id < 0 || static_cast<size_t>(*id) >= count)) {
      return bad_input(where, key, std::to_string(*id),
                       "a token id below " + std::to_string(count));
    }
  }
  return Status();
}

// All tokens; of two with the same text the later is found, as in llama.cpp.
Status fill_vocabulary(const GgufVocab& vocab, const std::string& where, TokenizerParts& parts) {
  for (size_t id = 0; id < vocab.tokens.size(); ++id) {
    if (!is_valid_utf8(vocab.tokens[id])) {
      return bad_input(where, "tokenizer.ggml.tokens[" + std::to_string(id) + "]",
                       "bytes that are not UTF-8", "a token in UTF-8");
    }
    parts.vocabulary.add(std::string(vocab.tokens[id]), static_cast<TokenId>(id));
  }
  return Status();
}

Status add_special_tokens(const GgufVocab& vocab, const std::string& where, TokenizerParts& parts) {
  for (size_t id = 0; id < vocab.tokens.size(); ++id) {
    const int32_t type = type_of(vocab, id);
    if (type != kUnknownType && type != kControlType && type != kUserDefinedType) continue;
    if (vocab.tokens[id].size() > kMaxAddedToken) {
      return bad_input(where, "tokenizer.ggml.tokens[" + std::to_string(id) + "]",
                       "a special token of " + std::to_string(vocab.tokens[id].size()) + " bytes",
                       "at most " + std::to_string(kMaxAddedToken));
    }
    AddedToken token;
    token.id = static_cast<TokenId>(id);
    token.content = std::string(vocab.tokens[id]);
    token.special = type != kUserDefinedType;
    parts.add(token);
  }
  return Status();
}

Result<std::vector<Merge>> read_merges(const GgufVocab& vocab, const std::string& where,
                                       const Vocabulary& vocabulary) {
  if (vocab.merges.empty()) {
    return bad_input(where, "tokenizer.ggml.merges", "nothing", "the merges of a gpt2 tokenizer");
  }
  std::vector<Merge> merges;
  merges.reserve(vocab.merges.size());
  for (size_t i = 0; i < vocab.merges.size(); ++i) {
    const std::string_view entry = vocab.merges[i];
    // A token may begin with a space in odd vocabularies: the separator is the next one.
    const size_t space = entry.find(' ', 1);
    const auto left = entry.substr(0, std::min(space, entry.size()));
    const auto right =
        space == std::string_view::npos ? std::string_view() : entry.substr(space + 1);
    const auto left_id = vocabulary.find(left), right_id = vocabulary.find(right);
    const auto merged = vocabulary.find(std::string(left) + std::string(right));
    if (left.empty() || right.empty() || !left_id || !right_id || !merged) {
      return bad_input(where, "tokenizer.ggml.merges[" + std::to_string(i) + "]",
                       "\"" + to_valid_utf8(entry.substr(0, 80)) + "\"",
                       "two tokens whose union is a token");
    }
    merges.push_back({*left_id, *right_id, *merged, static_cast<uint32_t>(i)});
  }
  return merges;
}

Status read_gpt2(const GgufVocab& vocab, const std::string& where, TokenizerParts& parts,
                 bool& add_bos) {
  POLAR_ASSIGN(const PreKind* kind, find_pre_kind(vocab.pre, where));
  for (const char* pattern : kind->patterns) {
    POLAR_ASSIGN(Regex regex, Regex::compile(pattern, where, "tokenizer.ggml.pre"));
    parts.pre_tokenizer.steps.push_back(RegexSplit{regex, SplitBehavior::kIsolated, false});
  }
  parts.pre_tokenizer.steps.push_back(ByteLevelSplit{false, {}});
  if (kind->nfc) parts.normalizer.steps.push_back(NormalForms{NormalForm::kNfc});
  parts.decoder.steps.push_back(ByteLevelDecoder{});
  POLAR_ASSIGN(const std::vector<Merge> merges, read_merges(vocab, where, parts.vocabulary));
  Bpe::Options options;
  options.ignore_merges = kind->ignore_merges;
  parts.bpe = std::make_unique<Bpe>(&parts.vocabulary, options, merges);
  add_bos = kind->add_bos;
  return Status();
}

Status read_llama(const GgufVocab& vocab, const std::string& where, TokenizerParts& parts,
                  bool& add_bos) {
  const std::string metaspace = "\xE2\x96\x81";
  if (vocab.scores.empty()) {
    return bad_input(where, "tokenizer.ggml.scores", "nothing", "the scores of a llama tokenizer");
  }
  if (std::any_of(vocab.scores.begin(), vocab.scores.end(),
                  [](float score) { return std::isnan(score); })) {
    return bad_input(where, "tokenizer.ggml.scores", "a score that is not a number", "numbers");
  }
  parts.normalizer.steps.push_back(ReplaceText{" ", {}, metaspace});
  parts.space_prefix = vocab.add_space_prefix.value_or(true);
  parts.decoder.steps.push_back(ReplaceDecoder{ReplaceText{metaspace, {}, " "}});
  parts.decoder.steps.push_back(ByteFallbackDecoder{});
  parts.decoder.steps.push_back(FuseDecoder{});
  if (parts.space_prefix) parts.decoder.steps.push_back(StripDecoder{" ", 1, 0});
  Bpe::Options options;
  options.byte_fallback = true;
  if (vocab.unknown) options.unknown = static_cast<TokenId>(*vocab.unknown);
  parts.bpe = std::make_unique<Bpe>(&parts.vocabulary, options, vocab.scores);
  add_bos = true;
  return Status();
}

}  // namespace

Result<Tokenizer> Tokenizer::from_gguf(const GgufVocab& vocab, const std::string& where) {
  POLAR_RETURN_IF_ERROR(check_counts(vocab, where));
  auto parts = std::make_shared<TokenizerParts>();
  POLAR_RETURN_IF_ERROR(fill_vocabulary(vocab, where, *parts));
  bool add_bos = false;
  if (vocab.model == "gpt2") {
    POLAR_RETURN_IF_ERROR(read_gpt2(vocab, where, *parts, add_bos));
  } else if (vocab.model == "llama") {
    POLAR_RETURN_IF_ERROR(read_llama(vocab, where, *parts, add_bos));
  } else {
    return bad_input(where, "tokenizer.ggml.model",
                     "\"" + to_valid_utf8(vocab.model.substr(0, 80)) + "\"",
                     "\"gpt2\" or \"llama\"");
  }
  POLAR_RETURN_IF_ERROR(add_special_tokens(vocab, where, *parts));
  if (vocab.add_bos.value_or(add_bos) && vocab.bos) {
    parts->frame.insert(parts->frame.begin(), static_cast<TokenId>(*vocab.bos));
  }
  if (vocab.add_eos.value_or(false) && vocab.eos) {
    parts->frame.push_back(static_cast<TokenId>(*vocab.eos));
  }
  return Tokenizer(std::move(parts));
}

}  // namespace polar::text
