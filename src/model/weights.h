#pragma once
// A model's file, validated without touching tensor data (ModelFile), and its weights on a device
// (Weights).

#include <memory>
#include <string>
#include <vector>

#include "backend/device.h"
#include "model/config.h"

namespace polar::model {

/// The host tensors of one layer, named by what they do. A null data pointer: this model has none.
struct LayerTensors {
  Tensor attention_norm, attention_norm_bias;
  Tensor query, key, value, query_bias, key_bias, value_bias;
  Tensor query_norm, key_norm;
  Tensor output, output_bias;
  Tensor mlp_norm, mlp_norm_bias;
  Tensor gate, up, up_bias, down, down_bias;
};

/// A Hugging Face folder or a GGUF file: configuration and tensors with every name, type and shape
/// checked against the configuration. Tensors point into mapped files that live as long as the
/// ModelFile.
class ModelFile {
 public:
  /// Opens and validates. Errors name file, key, what was found and what was expected.
  static Result<ModelFile> open(const std::string& path);

  ModelFile(ModelFile&&) noexcept;
  ModelFile& operator=(ModelFile&&) noexcept;
  ~ModelFile();

  const ModelConfig& config() const { return config_; }
  const std::string& path() const { return path_; }
  bool is_gguf() const;
  /// Bytes of all tensors as stored.
  size_t weight_bytes() const { return weight_bytes_; }
  /// Counts of tensors by stored type, for `inspect`: "f16 x 196".
  std::string tensor_summary() const;
  /// xxh3 over the configuration's shape and each tensor's name, shape, type and a sample of its
  /// bytes: what a profile is bound to.
  std::string fingerprint() const;

  Tensor token_embedding, position_embedding, project_in, project_out;
  Tensor final_norm, final_norm_bias, lm_head;  // lm_head has no data when tied
  std::vector<LayerTensors> layers;

  /// What holds the mapped files (io::GgufFile, io::Safetensors...): for the tokenizer inside a
  /// GGUF file.
  struct Storage;
  const Storage& storage() const { return *storage_; }

 private:
  ModelFile();
  friend struct ModelFileBuilder;
  ModelConfig config_;
  std::string path_;
  size_t weight_bytes_ = 0;
  std::unique_ptr<Storage> storage_;
};

struct LayerWeights {
  backend::Norm attention_norm, query_norm, key_norm, mlp_norm;
  std::unique_ptr<backend::Weight> qkv, output, up, down;  // up: gate stacked over up when gated
  const float* qkv_bias = nullptr;                         // [(heads + 2 kv_heads) head_dim]
  const float* output_bias = nullptr;                      // [hidden]
  const float* up_bias = nullptr;                          // [ffn]
  const float* down_bias = nullptr;                        // [hidden]
};

/// A model on a device. Norm weights and biases are f32 vectors on the device, kept in `vectors`.
struct Weights {
  ModelConfig config;
  std::vector<backend::Buffer> vectors;
  std::unique_ptr<backend::Weight> token_embedding, position_embedding, project_in, project_out,
      lm_head;
  backend::Norm final_norm;
  backend::Rope rope;
  std::vector<LayerWeights> layers;

  /// The LM head: the token embedding when tied.
  const backend::Weight& head() const { return lm_head ? *lm_head : *token_embedding; }
  /// Bytes that one decode step reads of the weights: all products and the head; of the embedding
  /// one row per token.
  size_t step_bytes() const;
};

/// Uploads a model. The file must outlive the weights (mapped tensors are used in place on the
/// CPU).
Result<Weights> load_weights(backend::Device& device, const ModelFile& file);

/// Seeded random weights of a shape, made on the device: they say nothing of quality.
Result<Weights> dummy_weights(backend::Device& device, const ModelConfig& config, DType dtype,
                              uint64_t seed);

/// The configuration of a named benchmark shape ("llama-2-7b", "dummy-1b", ...: CONTRACT.md, `polar
/// bench`) or of a config.json.
Result<ModelConfig> dummy_config(const std::string& name_or_path);

}  // namespace polar::model
