#include "engine/loaded_model.h"

#include <fmt/format.h>

#include "engine/generation_defaults.h"
#include "engine/load_tokenizer.h"
#include "model/routed_neurons.h"

namespace polar::engine {

Result<std::unique_ptr<LoadedModel>> load_model(const std::string& path,
                                                const std::string& profile_directory,
                                                std::unique_ptr<backend::Device> device) {
  POLAR_ASSIGN(auto opened, model::ModelFile::open(path));
  auto file = std::make_unique<model::ModelFile>(std::move(opened));
  POLAR_ASSIGN(text::Tokenizer tokenizer, load_tokenizer(*file));
  POLAR_ASSIGN(const SamplingParams defaults, generation_defaults(*file));
  POLAR_ASSIGN(std::optional<ChatFormat> chat, ChatFormat::load(*file, tokenizer));
  std::optional<sparsity::Profile> profile;
  if (!profile_directory.empty()) {
    const model::ModelConfig& config = file->config();
    POLAR_ASSIGN(profile,
                 sparsity::open_profile(profile_directory,
                                        {config.layers, config.hidden, config.kv_heads, config.ffn},
                                        file->fingerprint()));
    POLAR_RETURN_IF_ERROR(model::prepare_neurons(*file, profile_directory, *profile));
  }
  POLAR_ASSIGN(auto weights, model::load_weights(*device, *file));
  return std::make_unique<LoadedModel>(LoadedModel{
      std::move(device), std::move(file), std::make_unique<model::Weights>(std::move(weights)),
      std::move(tokenizer), std::move(chat), defaults, std::move(profile)});
}

Result<int> LoadedModel::point(const std::string& name) const {
  if (!profile) {
    if (name.empty() || name == "dense") return 0;
    return bad_input("command line", "--point", "'" + name + "' without a profile", "--profile");
  }
  return sparsity::find_point(*profile, "command line", name);
}

Result<std::unique_ptr<Engine>> LoadedModel::make_engine(const EngineOptions& options) const {
  return Engine::create(*device, *weights, profile ? &*profile : nullptr, options);
}

std::vector<int32_t> LoadedModel::encode_prompt(std::string_view text) const {
  std::vector<int32_t> tokens = tokenizer.encode(text, true);
  if (tokens.empty() && weights->config.bos_token >= 0) tokens.push_back(weights->config.bos_token);
  return tokens;
}

}  // namespace polar::engine
