#include <fmt/format.h>

#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/command.h"
#include "cli/read_file.h"
#include "engine/chat_format.h"
#include "engine/load_tokenizer.h"

namespace polar::cli {

namespace {

struct TokenizeFlags {
  ModelFlags model;
  bool decode = false;
  bool special = true;
  std::string chat;
  Format format = Format::kMarkdown;
};

/// Token ids separated by white space or commas.
Result<std::vector<int32_t>> parse_ids(std::string text) {
  for (char& c : text) {
    if (c == ',' || c == '[' || c == ']') c = ' ';
  }
  std::istringstream in(text);
  std::vector<int32_t> ids;
  for (std::string word; in >> word;) {
    if (word.find_first_not_of("0123456789") != std::string::npos || word.size() > 9) {
      return bad_input("stdin", "token id " + std::to_string(ids.size()), "'" + word + "'",
                       "a whole number");
    }
    ids.push_back(std::stoi(word));
  }
  return ids;
}

Result<std::string> render_chat(const TokenizeFlags& flags, const model::ModelFile& file,
                                const text::Tokenizer& tokenizer) {
  POLAR_ASSIGN(const std::string bytes, read_file(flags.chat));
  nlohmann::ordered_json messages = nlohmann::ordered_json::parse(bytes, nullptr, false);
  nlohmann::ordered_json tools;
  if (messages.is_object()) {
    if (messages.contains("tools")) tools = messages["tools"];
    messages = messages.value("messages", nlohmann::ordered_json());
  }
  if (!messages.is_array())
    return bad_input(flags.chat, "messages", "no list", "a JSON array of messages");
  POLAR_ASSIGN(const auto format, engine::ChatFormat::load(file, tokenizer));
  if (!format)
    return bad_input(file.path(), "chat template", "nothing", "a model with a chat template");
  return format->render(messages, tools);
}

Result<int> tokenize(const TokenizeFlags& flags) {
  POLAR_ASSIGN(const auto file, model::ModelFile::open(flags.model.model));
  POLAR_ASSIGN(const text::Tokenizer tokenizer, engine::load_tokenizer(file));
  if (!flags.chat.empty()) {
    POLAR_ASSIGN(const std::string prompt, render_chat(flags, file, tokenizer));
    fmt::print("{}", prompt);
    return kOk;
  }
  const std::string text(std::istreambuf_iterator<char>(std::cin), {});
  if (flags.decode) {
    POLAR_ASSIGN(const std::vector<int32_t> ids, parse_ids(text));
    fmt::print("{}", tokenizer.decode(ids, false));
    return kOk;
  }
  const std::vector<int32_t> ids = tokenizer.encode(text, flags.special);
  if (flags.format == Format::kJson) {
    nlohmann::ordered_json pieces = nlohmann::ordered_json::array();
    for (const int32_t id : ids) pieces.push_back(tokenizer.piece(id));
    const nlohmann::ordered_json json = {{"tokens", ids}, {"pieces", pieces}};
    fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    return kOk;
  }
  for (size_t i = 0; i < ids.size(); ++i) fmt::print("{}{}", i > 0 ? " " : "", ids[i]);
  fmt::print("\n");
  return kOk;
}

}  // namespace

void add_tokenize(CLI::App& app, Run& run) {
  auto* command =
      app.add_subcommand("tokenize", "Turn text from stdin into token ids, or ids back into text");
  auto flags = std::make_shared<TokenizeFlags>();
  add_model_flags(*command, flags->model);
  command->add_flag("--decode", flags->decode, "Read ids from stdin, print their text");
  command->add_flag("!--no-special", flags->special,
                    "Without the special tokens that the tokenizer puts around a text");
  command->add_option("--chat", flags->chat,
                      "Render this JSON file of messages through the chat template");
  add_format_flag(*command, flags->format);
  if (flags->format == Format::kJson)
    flags->format = Format::kMarkdown;  // plain ids unless JSON is asked for
  command->callback([flags, &run] { run = [flags] { return tokenize(*flags); }; });
}

}  // namespace polar::cli
