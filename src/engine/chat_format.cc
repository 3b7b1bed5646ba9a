#include "engine/chat_format.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "model/model_file.h"

namespace polar::engine {

namespace {

using nlohmann::ordered_json;
namespace fs = std::filesystem;

std::optional<std::string> read_if_there(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return std::nullopt;
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

/// A token in tokenizer_config.json is a string or an object with its content.
void add_token(const ordered_json& config, const char* key, ordered_json& globals) {
  const auto found = config.find(key);
  if (found == config.end()) return;
  if (found->is_string()) globals[key] = *found;
  if (found->is_object() && found->contains("content") && (*found)["content"].is_string())
    globals[key] = (*found)["content"];
}

/// The template itself, or of a list of named ones the one that is called "default".
Result<std::optional<std::string>> template_in(const ordered_json& config,
                                               const std::string& where) {
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return std::optional<std::string>();
  if (found->is_string()) return std::optional(found->get<std::string>());
  if (found->is_array()) {
    for (const auto& named : *found) {
      if (named.is_object() && named.value("name", ordered_json()) == "default" &&
          named.contains("template") && named["template"].is_string())
        return std::optional(named["template"].get<std::string>());
    }
  }
  return bad_input(where, "chat_template", found->dump().substr(0, 40),
                   "a string, or a list with one that is named default");
}

struct Source {
  std::optional<std::string> text;
  std::string where;
  ordered_json globals = ordered_json::object();
};

Result<Source> source_in_folder(const fs::path& folder) {
  Source source;
  const fs::path config_path = folder / "tokenizer_config.json";
  source.where = config_path.string();
  if (const auto text = read_if_there(config_path)) {
    const ordered_json config = ordered_json::parse(*text, nullptr, false);
    if (!config.is_object())
      return bad_input(source.where, "file", "something else", "a JSON object");
    for (const char* key : {"bos_token", "eos_token", "pad_token", "unk_token"})
      add_token(config, key, source.globals);
    POLAR_ASSIGN(source.text, template_in(config, source.where));
  }
  if (auto text = read_if_there(folder / "chat_template.jinja")) {
    source.text = std::move(text);
    source.where = (folder / "chat_template.jinja").string();
  }
  return source;
}

Result<Source> source_in_gguf(const io::GgufFile& file, const text::Tokenizer& tokenizer) {
  Source source;
  source.where = file.path() + ": tokenizer.chat_template";
  if (file.contains("tokenizer.chat_template")) {
    POLAR_ASSIGN(const std::string_view text, file.string("tokenizer.chat_template"));
    source.text = std::string(text);
  }
  for (const char* name : {"bos", "eos"}) {
    const std::string key = std::string("tokenizer.ggml.") + name + "_token_id";
    POLAR_ASSIGN(const int64_t id, file.i64_or(key, -1));
    if (id >= 0 && id < tokenizer.vocab_size())
      source.globals[std::string(name) + "_token"] = tokenizer.piece(static_cast<int32_t>(id));
  }
  return source;
}

}  // namespace

Result<std::optional<ChatFormat>> ChatFormat::load(const model::ModelFile& file,
                                                   const text::Tokenizer& tokenizer) {
  POLAR_ASSIGN(Source source, file.is_gguf() ? source_in_gguf(*file.storage().gguf, tokenizer)
                                             : source_in_folder(file.path()));
  if (!source.text) return std::optional<ChatFormat>();
  POLAR_ASSIGN(auto parsed, text::ChatTemplate::parse(*source.text, source.where));
  return std::optional(
      ChatFormat(std::move(parsed),
                 source.globals.dump(-1, ' ', false, ordered_json::error_handler_t::replace)));
}

Result<std::string> ChatFormat::render(const ordered_json& messages, const ordered_json& tools,
                                       bool add_generation_prompt) const {
  ordered_json context = ordered_json::parse(globals_);
  context["messages"] = messages;
  if (!tools.is_null()) context["tools"] = tools;
  context["add_generation_prompt"] = add_generation_prompt;
  return template_.render(context);
}

}  // namespace polar::engine
