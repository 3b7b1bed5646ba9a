#pragma once

#include <memory>

#include "cli/command.h"
#include "engine/loaded_model.h"

namespace polar::cli {

/// A model, its engine, and the operating point that the flags name: what the commands that
/// generate stand on.
struct OpenModel {
  std::unique_ptr<engine::LoadedModel> model;
  std::unique_ptr<engine::Engine> engine;  // uses `model`
  int point = 0;
};

/// `max_batch` is the command's default for --max-batch; 0: the engine's.
Result<OpenModel> open_model(const ModelFlags& flags, int max_batch = 0);

}  // namespace polar::cli
