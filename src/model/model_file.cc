// Tensor names of the families, each checked for presence, type and shape against the
// configuration.

#include "model/model_file.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <filesystem>
#include <map>
#include <set>

#include "io/in_quotes.h"
#include "model/config_reader.h"

namespace polar::model {

ModelFile::ModelFile() : storage_(std::make_unique<Storage>()) {}
ModelFile::ModelFile(ModelFile&&) noexcept = default;
ModelFile& ModelFile::operator=(ModelFile&&) noexcept = default;
ModelFile::~ModelFile() = default;
bool ModelFile::is_gguf() const {
  return storage_->gguf.has_value();
}

/// Names of a layer's tensors in the three spellings. "" : this spelling has no such tensor.
struct LayerNames {
  const char *attention_norm, *query, *key, *value, *query_norm, *key_norm, *output, *mlp_norm,
      *gate, *up, *down;
};

namespace {

constexpr LayerNames kOpt = {"self_attn_layer_norm",
                             "self_attn.q_proj",
                             "self_attn.k_proj",
                             "self_attn.v_proj",
                             "",
                             "",
                             "self_attn.out_proj",
                             "final_layer_norm",
                             "",
                             "fc1",
                             "fc2"};
constexpr LayerNames kLlama = {
    "input_layernorm",  "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
    "self_attn.q_norm", "self_attn.k_norm", "self_attn.o_proj", "post_attention_layernorm",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
constexpr LayerNames kGguf = {"attn_norm",   "attn_q",      "attn_k",      "attn_v",
                              "attn_q_norm", "attn_k_norm", "attn_output", "ffn_norm",
                              "ffn_gate",    "ffn_up",      "ffn_down"};

std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (int i = 0; i < tensor.rank; ++i)
    text += (i > 0 ? ", " : "") + std::to_string(tensor.shape[i]);
  return text + "]";
}

}  // namespace

/// Takes tensors out of a file by name and counts what was taken.
struct ModelFileBuilder {
  ModelFile file;
  std::set<std::string, std::less<>> taken;

  const std::string& where() const {
    return file.storage_->gguf ? file.storage_->gguf->path() : file.storage_->safetensors->path();
  }

  const Tensor* find(const std::string& name) const {
    return file.storage_->gguf ? file.storage_->gguf->find(name)
                               : file.storage_->safetensors->find(name);
  }

  /// A tensor of exactly this shape; `columns` 0: a vector.
  Status take(const std::string& name, int64_t rows, int64_t columns, Tensor* out) {
    const Tensor* found = find(name);
    const std::string wanted =
        columns > 0 ? fmt::format("[{}, {}]", rows, columns) : fmt::format("[{}]", rows);
    if (found == nullptr) {
      // The file's own words where it has the tensor but cannot give it.
      auto named = file.storage_->gguf ? file.storage_->gguf->tensor(name)
                                       : file.storage_->safetensors->tensor(name);
      if (!named.ok()) return named.error();
      return bad_input(where(), name, "nothing", "a tensor of shape " + wanted);
    }
    if (found->rank != (columns > 0 ? 2 : 1) || found->shape[0] != rows ||
        (columns > 0 && found->shape[1] != columns)) {
      return bad_input(where(), name, "shape " + shape_text(*found), "shape " + wanted);
    }
    if (found->dtype == DType::kI32 ||
        (columns == 0 && dtype_info(found->dtype).block_values != 1)) {
      return bad_input(where(), name, std::string(dtype_info(found->dtype).name),
                       "floating-point values");
    }
    taken.insert(name);
    file.weight_bytes_ += dtype_bytes(found->dtype, found->values());
    *out = *found;
    return {};
  }

  Status take_layer(const LayerNames& names, const std::string& prefix, LayerTensors* layer) {
    const ModelConfig& c = file.config_;
    const int64_t q = c.query_width(), kv = c.kv_width(), h = c.hidden;
    const auto matrix = [&](const char* name, int64_t rows, int64_t columns, bool bias,
                            Tensor* weight, Tensor* vector) -> Status {
      POLAR_RETURN_IF_ERROR(take(prefix + name + ".weight", rows, columns, weight));
      return bias ? take(prefix + name + ".bias", rows, 0, vector) : Status();
    };
    const bool layer_norm = c.norm == backend::NormKind::kLayer;
    const auto norm = [&](const char* name, int64_t width, Tensor* weight, Tensor* bias) -> Status {
      POLAR_RETURN_IF_ERROR(take(prefix + name + ".weight", width, 0, weight));
      return bias != nullptr && layer_norm ? take(prefix + name + ".bias", width, 0, bias)
                                           : Status();
    };
    POLAR_RETURN_IF_ERROR(
        norm(names.attention_norm, h, &layer->attention_norm, &layer->attention_norm_bias));
    POLAR_RETURN_IF_ERROR(matrix(names.query, q, h, c.qkv_bias, &layer->query, &layer->query_bias));
    POLAR_RETURN_IF_ERROR(matrix(names.key, kv, h, c.qkv_bias, &layer->key, &layer->key_bias));
    POLAR_RETURN_IF_ERROR(
        matrix(names.value, kv, h, c.qkv_bias, &layer->value, &layer->value_bias));
    if (c.qk_norm) {
      POLAR_RETURN_IF_ERROR(norm(names.query_norm, c.head_dim, &layer->query_norm, nullptr));
      POLAR_RETURN_IF_ERROR(norm(names.key_norm, c.head_dim, &layer->key_norm, nullptr));
    }
    POLAR_RETURN_IF_ERROR(
        matrix(names.output, h, q, c.output_bias, &layer->output, &layer->output_bias));
    POLAR_RETURN_IF_ERROR(norm(names.mlp_norm, h, &layer->mlp_norm, &layer->mlp_norm_bias));
    Tensor unused;
    if (c.gated) POLAR_RETURN_IF_ERROR(matrix(names.gate, c.ffn, h, false, &layer->gate, &unused));
    POLAR_RETURN_IF_ERROR(matrix(names.up, c.ffn, h, c.mlp_bias, &layer->up, &layer->up_bias));
    return matrix(names.down, h, c.ffn, c.mlp_bias, &layer->down, &layer->down_bias);
  }

  Status take_opt() {
    const ModelConfig& c = file.config_;
    std::string prefix = "model.decoder.";
    if (find(prefix + "embed_tokens.weight") == nullptr &&
        find("decoder.embed_tokens.weight") != nullptr) {
      prefix = "decoder.";
    }
    POLAR_RETURN_IF_ERROR(
        take(prefix + "embed_tokens.weight", c.vocabulary, c.embedding, &file.token_embedding));
    POLAR_RETURN_IF_ERROR(take(prefix + "embed_positions.weight",
                               static_cast<int64_t>(c.max_positions) + c.position_offset, c.hidden,
                               &file.position_embedding));
    if (c.embedding != c.hidden) {
      POLAR_RETURN_IF_ERROR(
          take(prefix + "project_in.weight", c.hidden, c.embedding, &file.project_in));
      POLAR_RETURN_IF_ERROR(
          take(prefix + "project_out.weight", c.embedding, c.hidden, &file.project_out));
    }
    if (c.final_norm) {
      POLAR_RETURN_IF_ERROR(
          take(prefix + "final_layer_norm.weight", c.hidden, 0, &file.final_norm));
      POLAR_RETURN_IF_ERROR(
          take(prefix + "final_layer_norm.bias", c.hidden, 0, &file.final_norm_bias));
    }
    return take_rest(kOpt, prefix + "layers.", "lm_head.weight");
  }

  Status take_llama() {
    const ModelConfig& c = file.config_;
    const bool gguf = file.is_gguf();
    POLAR_RETURN_IF_ERROR(take(gguf ? "token_embd.weight" : "model.embed_tokens.weight",
                               c.vocabulary, c.hidden, &file.token_embedding));
    POLAR_RETURN_IF_ERROR(
        take(gguf ? "output_norm.weight" : "model.norm.weight", c.hidden, 0, &file.final_norm));
    return take_rest(gguf ? kGguf : kLlama, gguf ? "blk." : "model.layers.",
                     gguf ? "output.weight" : "lm_head.weight");
  }

  /// The layers and the head; then nothing unknown may be left.
  Status take_rest(const LayerNames& names, const std::string& prefix, const char* head) {
    const ModelConfig& c = file.config_;
    if (!c.tied_embeddings)
      POLAR_RETURN_IF_ERROR(take(head, c.vocabulary, c.embedding, &file.lm_head));
    file.layers.resize(c.layers);
    for (int layer = 0; layer < c.layers; ++layer) {
      POLAR_RETURN_IF_ERROR(
          take_layer(names, prefix + std::to_string(layer) + ".", &file.layers[layer]));
    }
    const auto known = [&](std::string_view name) {
      return taken.contains(name) || name == head || name == "rope_freqs.weight" ||
             name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attn_rot_embd");
    };
    const auto unknown = [&](std::string_view name) {
      return bad_input(where(), io::in_quotes(name),
                       "a tensor that " + c.architecture + " models do not have",
                       "only known ones");
    };
    if (file.is_gguf()) {
      for (const io::GgufTensor& tensor : file.storage_->gguf->tensors()) {
        if (!known(tensor.name)) return unknown(tensor.name);
      }
    } else {
      for (const io::FileTensor& tensor : file.storage_->safetensors->tensors()) {
        if (!known(tensor.name)) return unknown(tensor.name);
      }
    }
    return {};
  }

  Status open(const std::string& path) {
    file.path_ = path;
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) {
      POLAR_ASSIGN(file.config_, read_hf_config(path));
      POLAR_ASSIGN(file.storage_->safetensors, io::ShardedSafetensors::open(path));
    } else {
      POLAR_ASSIGN(file.storage_->gguf, io::GgufFile::open(path));
      POLAR_ASSIGN(file.config_, read_gguf_config(*file.storage_->gguf));
    }
    return file.config_.architecture == "opt" ? take_opt() : take_llama();
  }
};

Result<ModelFile> ModelFile::open(const std::string& path) {
  ModelFileBuilder builder{ModelFile(), {}};
  POLAR_RETURN_IF_ERROR(builder.open(path));
  return std::move(builder.file);
}

namespace {

/// Calls fn(name, tensor) for every tensor of a layer that is there.
template <typename Fn>
void for_each_tensor(const LayerTensors& layer, Fn&& fn) {
  const Tensor* tensors[] = {&layer.attention_norm, &layer.attention_norm_bias,
                             &layer.query,          &layer.key,
                             &layer.value,          &layer.query_bias,
                             &layer.key_bias,       &layer.value_bias,
                             &layer.query_norm,     &layer.key_norm,
                             &layer.output,         &layer.output_bias,
                             &layer.mlp_norm,       &layer.mlp_norm_bias,
                             &layer.gate,           &layer.up,
                             &layer.up_bias,        &layer.down,
                             &layer.down_bias};
  for (const Tensor* tensor : tensors) {
    if (tensor->data != nullptr) fn(*tensor);
  }
}

template <typename Fn>
void for_each_tensor(const ModelFile& file, Fn&& fn) {
  for (const Tensor* tensor :
       {&file.token_embedding, &file.position_embedding, &file.project_in, &file.project_out,
        &file.final_norm, &file.final_norm_bias, &file.lm_head}) {
    if (tensor->data != nullptr) fn(*tensor);
  }
  for (const LayerTensors& layer : file.layers) for_each_tensor(layer, fn);
}

}  // namespace

std::string ModelFile::tensor_summary() const {
  std::map<std::string, int> counts;
  for_each_tensor(
      *this, [&](const Tensor& tensor) { ++counts[std::string(dtype_info(tensor.dtype).name)]; });
  std::string text;
  for (const auto& [type, count] : counts)
    text += fmt::format("{}{} x {}", text.empty() ? "" : ", ", type, count);
  return text;
}

std::string ModelFile::fingerprint() const {
  XXH3_state_t* state = XXH3_createState();
  XXH3_64bits_reset(state);
  const int64_t shape[] = {config_.layers,   config_.hidden, config_.heads,     config_.kv_heads,
                           config_.head_dim, config_.ffn,    config_.vocabulary};
  XXH3_64bits_update(state, shape, sizeof(shape));
  for_each_tensor(*this, [&](const Tensor& tensor) {
    XXH3_64bits_update(state, tensor.shape.data(), sizeof(tensor.shape));
    XXH3_64bits_update(state, &tensor.dtype, sizeof(tensor.dtype));
    // A few samples tell fine-tuned siblings apart without reading the whole file.
    const size_t bytes = dtype_bytes(tensor.dtype, tensor.values());
    constexpr size_t kSample = 256;
    for (const size_t at : {size_t{0}, bytes / 2, bytes - std::min(bytes, kSample)}) {
      XXH3_64bits_update(state, tensor.as<std::byte>() + at, std::min(kSample, bytes - at));
    }
  });
  const uint64_t hash = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return fmt::format("{:016x}", hash);
}

}  // namespace polar::model
