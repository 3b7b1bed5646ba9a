#pragma once

#include <string>

#include "engine/loaded_model.h"

namespace polar::serve {

/// GET /polar/profile: the model's shape, and each operating point with its budgets and measured
/// quality. Without a profile: the dense point alone.
std::string profile_json(const engine::LoadedModel& model, const model::ModelConfig& config);

}  // namespace polar::serve
