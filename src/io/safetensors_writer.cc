#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "io/atomic_file.h"
#include "io/in_quotes.h"
#include "io/safetensors.h"

namespace polar::io {
namespace {

// The format's name of a type, or null for blocks that it does not know.
const char* format_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kI32:
      return "I32";
    default:
      return nullptr;
  }
}

std::string json_text(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

Status write_safetensors(const std::string& path, std::span<const FileTensor> tensors,
                         const std::map<std::string, std::string>& metadata) {
  // Wide types first: without holes, every tensor is then aligned to its own type.
  std::vector<const FileTensor*> order;
  for (const FileTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const FileTensor* a, const FileTensor* b) {
    const int a_bytes = dtype_info(a->view.dtype).block_bytes;
    const int b_bytes = dtype_info(b->view.dtype).block_bytes;
    return a_bytes != b_bytes ? a_bytes > b_bytes : a->name < b->name;
  });

  std::string header = "{";
  std::vector<std::string> entries;
  if (!metadata.empty()) {
    for (const auto& [key, value] : metadata) {
      entries.push_back(json_text(key) + ":" + json_text(value));
    }
    const std::string all = fmt::format("\"__metadata__\":{{{}}}", fmt::join(entries, ","));
    entries.assign(1, all);
  }
  std::vector<std::span<const std::byte>> parts(2);
  size_t position = 0;
  std::set<std::string_view> names = {"__metadata__"};
  for (const FileTensor* tensor : order) {
    const Tensor& view = tensor->view;
    const char* type = format_name(view.dtype);
    if (type == nullptr) {
      return bad_input(path, "tensor " + in_quotes(tensor->name), dtype_info(view.dtype).name,
                       "f32, f16, bf16 or i32");
    }
    if (!names.insert(tensor->name).second) {
      return bad_input(path, "tensor " + in_quotes(tensor->name), "a name already in use",
                       "unique names");
    }
    const size_t bytes = dtype_bytes(view.dtype, static_cast<size_t>(view.values()));
    const std::span<const int64_t> shape(view.shape.data(), static_cast<size_t>(view.rank));
    entries.push_back(fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                                  json_text(tensor->name), type, fmt::join(shape, ","), position,
                                  position + bytes));
    parts.emplace_back(static_cast<const std::byte*>(view.data), bytes);
    position += bytes;
  }
  header += fmt::format("{}}}", fmt::join(entries, ","));
  header.resize((header.size() + 7) / 8 * 8, ' ');

  const uint64_t length = header.size();
  parts[0] = std::as_bytes(std::span(&length, 1));
  parts[1] = std::as_bytes(std::span(header));
  return write_file_atomically(path, parts);
}

}  // namespace polar::io
