#include "engine/load_tokenizer.h"

#include <filesystem>

#include "model/model_file.h"

namespace polar::engine {

namespace {

constexpr const char* kPrefix = "tokenizer.ggml.";

Result<std::optional<int64_t>> optional_id(const io::GgufFile& file, const std::string& key) {
  if (!file.contains(kPrefix + key)) return std::optional<int64_t>();
  POLAR_ASSIGN(const int64_t id, file.i64(kPrefix + key));
  return std::optional<int64_t>(id);
}

Result<std::optional<bool>> optional_flag(const io::GgufFile& file, const std::string& key) {
  if (!file.contains(kPrefix + key)) return std::optional<bool>();
  POLAR_ASSIGN(const bool flag, file.boolean(kPrefix + key));
  return std::optional<bool>(flag);
}

Result<text::Tokenizer> from_gguf(const io::GgufFile& file) {
  const std::string prefix = kPrefix;
  text::GgufVocab vocab;
  POLAR_ASSIGN(vocab.model, file.string(prefix + "model"));
  POLAR_ASSIGN(vocab.pre, file.string_or(prefix + "pre", ""));
  POLAR_ASSIGN(vocab.tokens, file.strings(prefix + "tokens"));
  if (file.contains(prefix + "scores")) {
    POLAR_ASSIGN(vocab.scores, file.floats(prefix + "scores"));
  }
  if (file.contains(prefix + "token_type")) {
    POLAR_ASSIGN(const std::vector<int64_t> types, file.integers(prefix + "token_type"));
    vocab.types.assign(types.begin(), types.end());
  }
  if (file.contains(prefix + "merges")) {
    POLAR_ASSIGN(vocab.merges, file.strings(prefix + "merges"));
  }
  POLAR_ASSIGN(vocab.bos, optional_id(file, "bos_token_id"));
  POLAR_ASSIGN(vocab.eos, optional_id(file, "eos_token_id"));
  POLAR_ASSIGN(vocab.unknown, optional_id(file, "unknown_token_id"));
  POLAR_ASSIGN(vocab.add_bos, optional_flag(file, "add_bos_token"));
  POLAR_ASSIGN(vocab.add_eos, optional_flag(file, "add_eos_token"));
  POLAR_ASSIGN(vocab.add_space_prefix, optional_flag(file, "add_space_prefix"));
  return text::Tokenizer::from_gguf(vocab, file.path());
}

}  // namespace

Result<text::Tokenizer> load_tokenizer(const model::ModelFile& file) {
  const std::string path = file.is_gguf()
                               ? file.path()
                               : (std::filesystem::path(file.path()) / "tokenizer.json").string();
  auto tokenizer =
      file.is_gguf() ? from_gguf(*file.storage().gguf) : text::Tokenizer::from_json_file(path);
  if (!tokenizer.ok()) return tokenizer.error();
  if (tokenizer->vocab_size() > file.config().vocabulary) {
    return bad_input(path, "vocabulary", std::to_string(tokenizer->vocab_size()) + " tokens",
                     "at most the model's " + std::to_string(file.config().vocabulary));
  }
  return std::move(tokenizer).value();
}

}  // namespace polar::engine
