#include "text/tokenizer_json.h"

#include <algorithm>
#include <fstream>
#include <unordered_set>

#include "text/tokenizer.h"

namespace polar::text {
namespace {

constexpr std::streamoff kMaxFile = 256 << 20;  // bytes; the largest published ones have 35 MB

Result<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  if (size < 0 || size > kMaxFile) {
    return bad_input(path, "file", size < 0 ? "no readable file" : std::to_string(size) + " bytes",
                     "a tokenizer.json of at most 256 MiB");
  }
  std::string content(static_cast<size_t>(size), '\0');
  file.seekg(0);
  file.read(content.data(), size);
  if (!file) return bad_input(path, "file", "a read error", "a tokenizer.json");
  return content;
}

Status read_vocabulary(const JsonView& vocab, Vocabulary& vocabulary) {
  POLAR_RETURN_IF_ERROR(vocab.require_object());
  if (vocab.value().size() > kMaxVocabulary) {
    return vocab.error(std::to_string(vocab.value().size()) + " tokens",
                       "at most " + std::to_string(kMaxVocabulary));
  }
  for (const auto& [piece, value] : vocab.value().items()) {
    const JsonView entry(&value, vocab.where(), vocab.key() + "[\"" + piece.substr(0, 80) + "\"]");
    POLAR_ASSIGN(const int64_t id, entry.integer(0, kMaxVocabulary - 1));
    if (const std::string* other = vocabulary.piece(static_cast<TokenId>(id))) {
      return entry.error(std::to_string(id) + ", which \"" + other->substr(0, 80) + "\" has too",
                         "an id of its own");
    }
    vocabulary.add(piece, static_cast<TokenId>(id));
  }
  return Status();
}

// One merge: ["a", "b"], or "a b" in older files.
Status split_merge(const JsonView& entry, std::string_view& left, std::string_view& right) {
  const auto& value = entry.value();
  if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string()) {
    left = value[0].get_ref<const std::string&>();
    right = value[1].get_ref<const std::string&>();
    return Status();
  }
  if (value.is_string()) {
    const std::string_view text = value.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos) {
      left = text.substr(0, space);
      right = text.substr(space + 1);
      return Status();
    }
  }
  return entry.error("a pair of tokens");
}

Result<std::vector<Merge>> read_merges(const JsonView& json, const Vocabulary& vocabulary) {
  POLAR_RETURN_IF_ERROR(json.require_array());
  std::vector<Merge> merges;
  merges.reserve(std::min(json.value().size(), kMaxVocabulary));
  for (size_t i = 0; i < json.value().size(); ++i) {
    const auto& value = json.value()[i];
    if (value.is_string() && value.get_ref<const std::string&>().starts_with("#version")) continue;
    std::string_view left, right;
    const JsonView entry = json.at(i);
    POLAR_RETURN_IF_ERROR(split_merge(entry, left, right));
    const auto left_id = vocabulary.find(left), right_id = vocabulary.find(right);
    const auto merged = vocabulary.find(std::string(left) + std::string(right));
    if (!left_id || !right_id || !merged || left.empty() || right.empty()) {
      return entry.error("\"" + std::string(left.substr(0, 80)) + "\" and \"" +
                             std::string(right.substr(0, 80)) + "\"",
                         "two tokens whose union is a token of model.vocab");
    }
    merges.push_back({*left_id, *right_id, *merged, static_cast<uint32_t>(i)});
  }
  return merges;
}

Status require_absent(const JsonView& json) {
  const auto& value = json.value();
  const bool absent = value.is_null() ||
                      (value.is_string() && value.get_ref<const std::string&>().empty()) ||
                      (value.is_number() && value.get<double>() == 0.0);
  return absent ? Status() : Status(json.error("nothing (it is not supported)"));
}

Status read_model(const JsonView& model, TokenizerParts& parts) {
  POLAR_RETURN_IF_ERROR(model.require_object());
  const JsonView type = model.at("type");
  // Files from before there were other models do not say their type.
  const bool old = type.is_null() && model.at("merges").value().is_array();
  if (!old && type.value() != "BPE") return type.error("\"BPE\"");
  for (const char* name : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    POLAR_RETURN_IF_ERROR(require_absent(model.at(name)));
  }
  POLAR_RETURN_IF_ERROR(read_vocabulary(model.at("vocab"), parts.vocabulary));
  POLAR_ASSIGN(const std::vector<Merge> merges, read_merges(model.at("merges"), parts.vocabulary));
  Bpe::Options options;
  POLAR_ASSIGN(options.byte_fallback, model.at("byte_fallback").boolean(false));
  POLAR_ASSIGN(options.fuse_unknown, model.at("fuse_unk").boolean(false));
  POLAR_ASSIGN(options.ignore_merges, model.at("ignore_merges").boolean(false));
  if (const JsonView unknown = model.at("unk_token"); !unknown.is_null()) {
    POLAR_ASSIGN(const std::string piece, unknown.string());
    options.unknown = parts.vocabulary.find(piece);
    if (!options.unknown) return unknown.error("a token of model.vocab");
  }
  parts.bpe = std::make_unique<Bpe>(&parts.vocabulary, options, merges);
  return Status();
}

Result<AddedToken> read_added_token(const JsonView& json) {
  POLAR_RETURN_IF_ERROR(json.require_object());
  AddedToken token;
  POLAR_ASSIGN(const int64_t id, json.at("id").integer(0, kMaxVocabulary - 1));
  token.id = static_cast<TokenId>(id);
  POLAR_ASSIGN(token.content, json.at("content").string());
  if (token.content.size() > kMaxAddedToken) {
    return json.at("content").error("at most " + std::to_string(kMaxAddedToken) + " bytes");
  }
  POLAR_ASSIGN(token.special, json.at("special").boolean(false));
  POLAR_ASSIGN(token.normalized, json.at("normalized").boolean(!token.special));
  POLAR_ASSIGN(token.single_word, json.at("single_word").boolean(false));
  POLAR_ASSIGN(token.lstrip, json.at("lstrip").boolean(false));
  POLAR_ASSIGN(token.rstrip, json.at("rstrip").boolean(false));
  return token;
}

Status read_added_tokens(const JsonView& list, TokenizerParts& parts) {
  if (list.is_null()) return Status();
  POLAR_RETURN_IF_ERROR(list.require_array());
  std::vector<AddedToken> tokens;
  for (size_t i = 0; i < list.value().size(); ++i) {
    POLAR_ASSIGN(AddedToken token, read_added_token(list.at(i)));
    if (token.content.empty()) continue;
    const auto known = parts.vocabulary.find(token.content);
    const std::string* piece = parts.vocabulary.piece(token.id);
    if ((known && *known != token.id) || (piece != nullptr && *piece != token.content)) {
      return list.at(i).at("id").error(
          known ? "\"" + token.content + "\" to have id " + std::to_string(*known)
                : "an id that model.vocab does not give to another token");
    }
    tokens.push_back(std::move(token));
  }
  // Special tokens are looked for first, as in the package.
  std::stable_sort(tokens.begin(), tokens.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.special > b.special; });
  for (const AddedToken& token : tokens) parts.add(token);
  return Status();
}

Status check_frame(const JsonView& json, const TokenizerParts& parts) {
  for (TokenId id : parts.frame) {
    if (id != kText && parts.piece(id) == nullptr) {
      return json.error("token id " + std::to_string(id), "an id of model.vocab or added_tokens");
    }
  }
  return Status();
}

}  // namespace

Result<Tokenizer> Tokenizer::from_json(std::string_view text, const std::string& where) {
  nlohmann::json root;
  try {
    root = nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& problem) {
    std::string what = problem.what();
    what = what.substr(0, 200);
    std::replace_if(
        what.begin(), what.end(), [](unsigned char c) { return c < 0x20 || c > 0x7E; }, '?');
    return bad_input(where, "JSON", what, "well-formed JSON");
  }
  const JsonView json(&root, where, "");
  if (!root.is_object()) return bad_input(where, "JSON", json.shown(), "an object");
  auto parts = std::make_shared<TokenizerParts>();
  POLAR_RETURN_IF_ERROR(read_normalizer(json.at("normalizer"), parts->normalizer));
  POLAR_RETURN_IF_ERROR(read_pre_tokenizer(json.at("pre_tokenizer"), parts->pre_tokenizer));
  POLAR_RETURN_IF_ERROR(read_decoder(json.at("decoder"), parts->decoder));
  if (json.at("decoder").is_null()) parts->decoder.steps.push_back(JoinDecoder{});
  POLAR_RETURN_IF_ERROR(read_post_processor(json.at("post_processor"), parts->frame));
  POLAR_RETURN_IF_ERROR(read_model(json.at("model"), *parts));
  POLAR_RETURN_IF_ERROR(read_added_tokens(json.at("added_tokens"), *parts));
  POLAR_RETURN_IF_ERROR(check_frame(json.at("post_processor"), *parts));
  return Tokenizer(std::move(parts));
}

Result<Tokenizer> Tokenizer::from_json_file(const std::string& path) {
  POLAR_ASSIGN(const std::string content, read_file(path));
  return from_json(content, path);
}

}  // namespace polar::text
