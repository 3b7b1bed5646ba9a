#pragma once

#include "model/weights.h"
#include "text/tokenizer.h"

namespace polar::engine {

/// The tokenizer that belongs to a model: tokenizer.json in its folder, or the vocabulary inside
/// its GGUF file. Errors: none there, or one that names more tokens than the model has.
Result<text::Tokenizer> load_tokenizer(const model::ModelFile& file);

}  // namespace polar::engine
