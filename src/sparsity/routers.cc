#include "sparsity/routers.h"

#include <cmath>
#include <filesystem>

#include "io/safetensors.h"

namespace polar::sparsity {

namespace {

std::string file_path(const std::string& directory) {
  return (std::filesystem::path(directory) / "routers.safetensors").string();
}

std::string shape_text(std::initializer_list<int64_t> shape) {
  std::string text;
  for (const int64_t extent : shape) text += (text.empty() ? "[" : ", ") + std::to_string(extent);
  return text + "]";
}

/// A tensor of a given shape as finite f32 values.
Result<std::vector<float>> read_values(const io::SafetensorsFile& file, const std::string& name,
                                       std::initializer_list<int64_t> shape) {
  POLAR_ASSIGN(const Tensor tensor, file.tensor(name));
  bool fits = tensor.rank == static_cast<int>(shape.size()) && tensor.dtype != DType::kI32;
  size_t axis = 0;
  for (const int64_t extent : shape) fits = fits && tensor.shape[axis++] == extent;
  if (!fits) {
    std::string found(dtype_info(tensor.dtype).name);
    for (int i = 0; i < tensor.rank; ++i)
      found += (i == 0 ? " [" : ", ") + std::to_string(tensor.shape[i]);
    return bad_input(file.path(), name, found + "]", "f32, f16 or bf16 " + shape_text(shape));
  }
  std::vector<float> values(tensor.values());
  dequantize_row(tensor.dtype, tensor.data, values.data(), values.size());
  for (const float value : values) {
    if (!std::isfinite(value))
      return bad_input(file.path(), name, std::to_string(value), "finite values");
  }
  return values;
}

/// An i32 tensor of `count` values (-1: any number of them) in [least, most], whatever its rank.
Result<std::vector<int32_t>> read_integers(const io::SafetensorsFile& file, const std::string& name,
                                           int64_t count, int least, int most) {
  POLAR_ASSIGN(const Tensor tensor, file.tensor(name));
  if (tensor.dtype != DType::kI32 || tensor.values() == 0 ||
      (count >= 0 && tensor.values() != count)) {
    return bad_input(
        file.path(), name,
        std::string(dtype_info(tensor.dtype).name) + " of " + std::to_string(tensor.values()),
        count >= 0 ? "a list of " + std::to_string(count) + " i32" : "a list of i32");
  }
  std::vector<int32_t> values(tensor.as<int32_t>(), tensor.as<int32_t>() + tensor.values());
  for (const int32_t value : values) {
    if (value < least || value > most) {
      return bad_input(file.path(), name, std::to_string(value),
                       std::to_string(least) + " to " + std::to_string(most));
    }
  }
  return values;
}

Status read_mlp(const io::SafetensorsFile& file, const std::string& prefix, const Routers& routers,
                MlpRouter& mlp) {
  POLAR_ASSIGN(mlp.neurons,
               read_integers(file, prefix + "neurons",
                             static_cast<int64_t>(routers.recalls.size() * routers.batches.size()),
                             1, routers.ffn));
  if (file.holds(prefix + "unit")) {
    POLAR_ASSIGN(const auto unit, read_values(file, prefix + "unit", {1}));
    mlp.unit = unit[0];
    if (!(mlp.unit > 0))
      return bad_input(file.path(), prefix + "unit", std::to_string(mlp.unit), "more than 0");
    if (routers.hidden % 32 != 0)
      return bad_input(file.path(), prefix + "unit",
                       "hidden size " + std::to_string(routers.hidden),
                       "a multiple of 32, as blocks of four bits want");
    return {};
  }
  POLAR_ASSIGN(const Tensor a, file.tensor(prefix + "a"));
  mlp.rank = a.rank == 2 ? static_cast<int>(a.shape[0]) : 0;
  if (mlp.rank < 1 || mlp.rank > routers.hidden)
    return bad_input(file.path(), prefix + "a", "rank " + std::to_string(mlp.rank),
                     "a matrix of 1 to " + std::to_string(routers.hidden) + " rows");
  POLAR_ASSIGN(mlp.a, read_values(file, prefix + "a", {mlp.rank, routers.hidden}));
  POLAR_ASSIGN(mlp.b, read_values(file, prefix + "b", {routers.ffn, mlp.rank}));
  if (file.holds(prefix + "bias")) {
    POLAR_ASSIGN(mlp.bias, read_values(file, prefix + "bias", {routers.ffn}));
  } else {
    mlp.bias.assign(routers.ffn, 0.0f);  // the paper's routers have none
  }
  return {};
}

}  // namespace

bool Routers::routes_heads() const {
  for (const HeadRouter& head : heads) {
    if (!head.weight.empty()) return true;
  }
  return false;
}

bool Routers::routes_neurons() const {
  for (const MlpRouter& mlp : mlps) {
    if (mlp.routes()) return true;
  }
  return false;
}

Result<Routers> read_routers(const std::string& directory, int layers, int hidden, int kv_heads,
                             int ffn) {
  POLAR_ASSIGN(const auto file, io::SafetensorsFile::open(file_path(directory)));
  Routers routers;
  routers.hidden = hidden;
  routers.kv_heads = kv_heads;
  routers.ffn = ffn;
  routers.heads.resize(layers);
  routers.mlps.resize(layers);
  if (file.holds("mlp_router.batches")) {
    POLAR_ASSIGN(routers.batches, read_integers(file, "mlp_router.batches", -1, 1, 1 << 20));
    for (size_t i = 1; i < routers.batches.size(); ++i) {
      if (routers.batches[i] <= routers.batches[i - 1])
        return bad_input(file.path(), "mlp_router.batches", std::to_string(routers.batches[i]),
                         "ascending sizes");
    }
    POLAR_ASSIGN(const Tensor stored, file.tensor("mlp_router.recall"));
    POLAR_ASSIGN(const auto recalls, read_values(file, "mlp_router.recall", {stored.shape[0]}));
    for (const float recall : recalls) {
      const double above = routers.recalls.empty() ? 0 : routers.recalls.back();
      if (!(recall > above && recall <= 1))
        return bad_input(file.path(), "mlp_router.recall", std::to_string(recall),
                         "ascending shares in (0, 1]");
      routers.recalls.push_back(recall);
    }
    if (recalls.empty())
      return bad_input(file.path(), "mlp_router.recall", "no shares", "at least one");
  }
  for (int layer = 0; layer < layers; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    if (file.holds(prefix + "head_router.weight")) {
      HeadRouter& head = routers.heads[layer];
      POLAR_ASSIGN(head.weight,
                   read_values(file, prefix + "head_router.weight", {kv_heads, hidden}));
      POLAR_ASSIGN(head.bias, read_values(file, prefix + "head_router.bias", {kv_heads}));
    }
    if (file.holds(prefix + "mlp_router.a") || file.holds(prefix + "mlp_router.unit")) {
      if (routers.batches.empty())
        return bad_input(file.path(), "mlp_router.batches", "nothing", "a list of batch sizes");
      POLAR_RETURN_IF_ERROR(read_mlp(file, prefix + "mlp_router.", routers, routers.mlps[layer]));
    }
  }
  if (!routers.routes_heads() && !routers.routes_neurons())
    return bad_input(file.path(), "layers.0.head_router.weight", "no router", "a router");
  return routers;
}

Status write_routers(const std::string& directory, const Routers& routers) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  std::vector<io::FileTensor> tensors;
  const auto add = [&](const std::string& name, const void* data, DType type,
                       std::initializer_list<int64_t> shape) {
    Tensor view{const_cast<void*>(data), type, {1, 1, 1, 1}, 0};
    for (const int64_t extent : shape) view.shape[view.rank++] = extent;
    tensors.push_back({name, view});
  };
  const std::vector<float> recalls(routers.recalls.begin(), routers.recalls.end());
  const auto targets = static_cast<int64_t>(recalls.size());
  const auto sizes = static_cast<int64_t>(routers.batches.size());
  if (!routers.batches.empty()) {
    add("mlp_router.batches", routers.batches.data(), DType::kI32, {sizes});
    add("mlp_router.recall", recalls.data(), DType::kF32, {targets});
  }
  for (size_t layer = 0; layer < routers.heads.size(); ++layer) {
    const HeadRouter& head = routers.heads[layer];
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    if (head.weight.empty()) continue;
    add(prefix + "head_router.weight", head.weight.data(), DType::kF32,
        {routers.kv_heads, routers.hidden});
    add(prefix + "head_router.bias", head.bias.data(), DType::kF32, {routers.kv_heads});
  }
  for (size_t layer = 0; layer < routers.mlps.size(); ++layer) {
    const MlpRouter& mlp = routers.mlps[layer];
    const std::string prefix = "layers." + std::to_string(layer) + ".mlp_router.";
    if (!mlp.routes()) continue;
    if (mlp.rank == 0) {
      add(prefix + "unit", &mlp.unit, DType::kF32, {1});
    } else {
      add(prefix + "a", mlp.a.data(), DType::kF32, {mlp.rank, routers.hidden});
      add(prefix + "b", mlp.b.data(), DType::kF32, {routers.ffn, mlp.rank});
      add(prefix + "bias", mlp.bias.data(), DType::kF32, {routers.ffn});
    }
    add(prefix + "neurons", mlp.neurons.data(), DType::kI32, {targets, sizes});
  }
  return io::write_safetensors(file_path(directory), tensors, {{"format", "polar routers 1"}});
}

}  // namespace polar::sparsity
