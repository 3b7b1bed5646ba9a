#pragma once
// The tensors of a model folder: one model.safetensors, or shards named by
// model.safetensors.index.json.

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "io/safetensors.h"

namespace polar::io {

/// All tensors of a Hugging Face model folder. Views live as long as this object (also after it is
/// moved).
class ShardedSafetensors {
 public:
  /// Opens FOLDER/model.safetensors, else the shards of FOLDER/model.safetensors.index.json. Every
  /// tensor of the index's weight_map must be in the shard it names; shards are plain file names
  /// inside the folder.
  static Result<ShardedSafetensors> open(const std::string& folder);

  /// Tensors that Polar can hold, sorted by name (see SafetensorsFile::tensors).
  const std::vector<FileTensor>& tensors() const { return tensors_; }
  /// The tensor of that name, or null.
  const Tensor* find(std::string_view name) const;
  /// The tensor of that name; an error that names the file when it is missing or unsupported.
  Result<Tensor> tensor(std::string_view name) const;
  const std::vector<SafetensorsFile>& files() const { return files_; }
  /// The file or index that names the tensors, for messages.
  const std::string& path() const { return path_; }

 private:
  ShardedSafetensors() = default;
  static Result<ShardedSafetensors> open_index(const std::string& folder, const std::string& index);

  std::string path_;
  std::vector<SafetensorsFile> files_;
  std::vector<FileTensor> tensors_;
  // Of tensors that Polar cannot hold: name and file, to say why when one is asked for.
  std::vector<std::pair<std::string, size_t>> unsupported_;
};

}  // namespace polar::io
