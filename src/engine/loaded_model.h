#pragma once
// A model, ready to run: what every command that generates opens, in one way.

#include <memory>
#include <optional>
#include <string>

#include "backend/device.h"
#include "engine/chat_format.h"
#include "engine/engine.h"
#include "engine/request.h"
#include "model/weights.h"
#include "sparsity/profile.h"
#include "text/tokenizer.h"

namespace polar::engine {

struct LoadedModel {
  // In the order in which they depend on each other.
  std::unique_ptr<backend::Device> device;
  std::unique_ptr<model::ModelFile> file;
  std::unique_ptr<model::Weights> weights;
  text::Tokenizer tokenizer;
  std::optional<ChatFormat> chat;            // nothing: the model has no chat template
  SamplingParams defaults;                   // what the model's makers want
  std::optional<sparsity::Profile> profile;  // checked against the model

  /// Index of a profile's point by name. Without a name: the profile's first sparse point, or
  /// dense where there is none.
  Result<int> point(const std::string& name) const;

  /// An engine on this model, which must outlive it.
  Result<std::unique_ptr<Engine>> make_engine(const EngineOptions& options) const;

  /// The ids of a text as a prompt: with the special tokens that the tokenizer puts around it, and
  /// for an empty text the token that begins all texts, if there is one.
  std::vector<int32_t> encode_prompt(std::string_view text) const;
};

/// Opens, validates and uploads a model. `profile_directory` may be empty.
Result<std::unique_ptr<LoadedModel>> load_model(const std::string& path,
                                                const std::string& profile_directory,
                                                std::unique_ptr<backend::Device> device);

}  // namespace polar::engine
