#pragma once
// From what files say to a ModelConfig. Unknown architectures, rope types and activations are
// errors that name them.

#include <string>

#include "core/error.h"
#include "io/gguf.h"
#include "model/config.h"

namespace polar::model {

/// FOLDER/config.json (and generation_config.json for the tokens that end a text) of opt, llama,
/// mistral, qwen2 and qwen3. Both spellings are read: the published one (rope_theta, rope_scaling)
/// and that of transformers 5 (rope_parameters, layer_types).
Result<ModelConfig> read_hf_config(const std::string& folder);

/// A config.json alone, for benchmarks of shapes.
Result<ModelConfig> read_config_json(const std::string& path);

/// The metadata of a GGUF file of architecture llama, qwen2 or qwen3.
Result<ModelConfig> read_gguf_config(const io::GgufFile& file);

/// Errors where values contradict each other or are absurd; `where` is the file's name.
Status check_config(const ModelConfig& config, const std::string& where);

}  // namespace polar::model
