#include "io/sharded_safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <utility>

#include "io/in_quotes.h"
#include "io/mmap.h"
#include "io/weight_map.h"

namespace polar::io {
namespace {

bool exists(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0;
}

}  // namespace

Result<ShardedSafetensors> ShardedSafetensors::open(const std::string& folder) {
  const std::string single = folder + "/model.safetensors";
  const std::string index = folder + "/model.safetensors.index.json";
  if (exists(single)) {
    POLAR_ASSIGN(SafetensorsFile file, SafetensorsFile::open(single));
    ShardedSafetensors model;
    model.path_ = single;
    model.tensors_ = file.tensors();
    model.files_.push_back(std::move(file));
    return model;
  }
  if (exists(index)) return open_index(folder, index);
  return bad_input(folder, "weights", "no safetensors file",
                   "model.safetensors or model.safetensors.index.json");
}

Result<ShardedSafetensors> ShardedSafetensors::open_index(const std::string& folder,
                                                          const std::string& index) {
  POLAR_ASSIGN(const MappedFile map, MappedFile::open(index));
  const std::string_view json(reinterpret_cast<const char*>(map.data()), map.size());
  POLAR_ASSIGN(const auto weight_map, parse_weight_map(json, index));

  ShardedSafetensors model;
  model.path_ = index;
  std::map<std::string, size_t> file_index;
  for (const auto& [name, shard] : weight_map) {  // in the order of names: tensors_ is sorted
    const auto [at, is_new] = file_index.try_emplace(shard, model.files_.size());
    if (is_new) {
      if (!exists(folder + "/" + shard)) {
        return bad_input(index, "weight_map",
                         "the shard " + in_quotes(shard) + ", which is not in the folder",
                         "files beside the index");
      }
      POLAR_ASSIGN(SafetensorsFile file, SafetensorsFile::open(folder + "/" + shard));
      model.files_.push_back(std::move(file));
    }
    const SafetensorsFile& file = model.files_[at->second];
    if (const Tensor* view = file.find(name)) {
      model.tensors_.push_back({name, *view});
    } else if (file.holds(name)) {
      model.unsupported_.emplace_back(name, at->second);
    } else {
      return bad_input(index, "tensor " + in_quotes(name), "no such tensor in " + in_quotes(shard),
                       "it in the shard that weight_map names");
    }
  }
  return model;
}

const Tensor* ShardedSafetensors::find(std::string_view name) const {
  const auto at =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const FileTensor& a, std::string_view b) { return a.name < b; });
  return at != tensors_.end() && at->name == name ? &at->view : nullptr;
}

Result<Tensor> ShardedSafetensors::tensor(std::string_view name) const {
  if (const Tensor* view = find(name)) return *view;
  for (const auto& [unsupported, file] : unsupported_) {
    if (unsupported == name) return files_[file].tensor(name);
  }
  // A single file knows best why it cannot give a tensor.
  if (files_.size() == 1 && path_ == files_[0].path()) return files_[0].tensor(name);
  return bad_input(path_, "tensor " + in_quotes(name), "nothing", "a tensor of this name");
}

}  // namespace polar::io
