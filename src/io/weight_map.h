#pragma once

#include <map>
#include <string>
#include <string_view>

#include "core/error.h"

namespace polar::io {

/// The weight_map of a model.safetensors.index.json: tensor name -> shard's file name. Refused:
/// broken JSON, no or an empty weight_map, duplicate names, shards that are not plain file names
/// ("../x", "/x", "a/b"). Other keys are ignored. `file` stands for the file in messages.
Result<std::map<std::string, std::string>> parse_weight_map(std::string_view text,
                                                            const std::string& file);

}  // namespace polar::io
