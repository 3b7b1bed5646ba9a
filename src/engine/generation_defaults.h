#pragma once

#include <string>

#include "core/error.h"
#include "engine/request.h"
#include "model/weights.h"

namespace polar::engine {

/// How a model's makers want it sampled: generation_config.json of its folder, or greedy where it
/// has none. `do_sample` false means greedy; true without a temperature means 1.
Result<SamplingParams> generation_defaults(const model::ModelFile& file);

/// The same from the file's text; `where` names it in errors.
Result<SamplingParams> parse_generation_config(const std::string& text, const std::string& where);

}  // namespace polar::engine
