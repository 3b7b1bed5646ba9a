#include "io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "io/in_quotes.h"
#include "io/safetensors_header.h"

namespace polar::io {
namespace {

constexpr uint64_t kLengthBytes = 8;  // of the header's size
constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct FormatType {
  std::string_view name;
  unsigned bits;               // per value
  std::optional<DType> dtype;  // what Polar calls it, if it can hold it
};

// All types of the format; files hold masks and counters of types that no computation needs.
constexpr std::array<FormatType, 22> kTypes = {{
    {"F32", 32, DType::kF32},         {"F16", 16, DType::kF16},
    {"BF16", 16, DType::kBF16},       {"I32", 32, DType::kI32},
    {"BOOL", 8, std::nullopt},        {"U8", 8, std::nullopt},
    {"I8", 8, std::nullopt},          {"F8_E4M3", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},     {"F8_E8M0", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt}, {"F8_E5M2FNUZ", 8, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},     {"F6_E3M2", 6, std::nullopt},
    {"F4", 4, std::nullopt},          {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},        {"U32", 32, std::nullopt},
    {"I64", 64, std::nullopt},        {"U64", 64, std::nullopt},
    {"F64", 64, std::nullopt},        {"C64", 64, std::nullopt},
}};

std::string tensor_key(std::string_view name) {
  return "tensor " + in_quotes(name);
}

std::string shape_text(const std::vector<uint64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// Bytes of a tensor of that shape, or nothing when its extents other than 0 multiply to 2^63 bits
// or more, or do not fill whole bytes.
std::optional<uint64_t> shape_bytes(const std::vector<uint64_t>& shape, unsigned bits) {
  uint64_t total_bits = bits;
  bool has_zero = false;
  for (const uint64_t extent : shape) {
    if (extent == 0) has_zero = true;
    if (__builtin_mul_overflow(total_bits, std::max<uint64_t>(extent, 1), &total_bits)) return {};
  }
  if (total_bits > INT64_MAX) return {};
  if (has_zero) return 0;
  if (total_bits % 8 != 0) return {};
  return total_bits / 8;
}

}  // namespace

// Turns header and data into a SafetensorsFile.
struct SafetensorsBuilder {
  SafetensorsFile& file;
  std::span<const std::byte> data;  // what follows the header

  // Each tensor begins where the one before it ends, the first at 0, and the last ends with the
  // file.
  Status check_offsets(const std::vector<HeaderTensor>& tensors) const {
    std::vector<const HeaderTensor*> order;
    order.reserve(tensors.size());
    for (const HeaderTensor& tensor : tensors) order.push_back(&tensor);
    std::sort(order.begin(), order.end(), [](const HeaderTensor* a, const HeaderTensor* b) {
      return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
    });
    uint64_t position = 0;
    for (const HeaderTensor* tensor : order) {
      if (tensor->begin > tensor->end || tensor->end > data.size()) {
        return bad_input(
            file.path_, tensor_key(tensor->name),
            fmt::format("data offsets [{}, {}]", tensor->begin, tensor->end),
            fmt::format("an ascending range within the {} bytes of data", data.size()));
      }
      if (tensor->begin != position) {
        return bad_input(file.path_, tensor_key(tensor->name),
                         fmt::format("data offsets [{}, {}]", tensor->begin, tensor->end),
                         fmt::format("a begin of {}, without {}", position,
                                     tensor->begin < position ? "overlap" : "a hole"));
      }
      position = tensor->end;
    }
    if (position != data.size()) {
      return bad_input(file.path_, "data", fmt::format("{} bytes", data.size()),
                       fmt::format("the {} bytes that the header describes", position));
    }
    return {};
  }

  Status add(const HeaderTensor& tensor) {
    const auto type = std::find_if(kTypes.begin(), kTypes.end(),
                                   [&](const FormatType& t) { return t.name == tensor.dtype; });
    if (type == kTypes.end()) {
      return bad_input(file.path_, tensor_key(tensor.name), "dtype " + in_quotes(tensor.dtype),
                       "a type of the format (F32, F16, BF16, ...)");
    }
    const std::optional<uint64_t> bytes = shape_bytes(tensor.shape, type->bits);
    if (bytes != tensor.end - tensor.begin) {
      return bad_input(
          file.path_, tensor_key(tensor.name),
          fmt::format("{} bytes of data", tensor.end - tensor.begin),
          bytes ? fmt::format("{} bytes for {} {}", *bytes, type->name, shape_text(tensor.shape))
                : fmt::format("whole bytes below 2^63 bits in all instead of {} {}", type->name,
                              shape_text(tensor.shape)));
    }
    if (!type->dtype) {
      file.unsupported_.emplace(tensor.name, fmt::format("dtype {}", type->name));
    } else if (tensor.shape.size() > 4) {
      file.unsupported_.emplace(tensor.name, fmt::format("{} dimensions", tensor.shape.size()));
    } else {
      add_supported(tensor, *type->dtype);
    }
    return {};
  }

  void add_supported(const HeaderTensor& tensor, DType dtype) {
    Tensor view;
    view.dtype = dtype;
    view.rank = static_cast<int>(tensor.shape.size());
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      view.shape[i] = static_cast<int64_t>(tensor.shape[i]);  // fits: shape_bytes() saw to it
    }
    const std::span<const std::byte> bytes = data.subspan(tensor.begin, tensor.end - tensor.begin);
    view.data = const_cast<std::byte*>(bytes.data());  // the map is read only all the same
    const auto alignment = static_cast<uintptr_t>(dtype_info(dtype).block_bytes);
    if (reinterpret_cast<uintptr_t>(bytes.data()) % alignment != 0 && !bytes.empty()) {
      auto copy = std::make_unique<std::byte[]>(bytes.size());
      std::memcpy(copy.get(), bytes.data(), bytes.size());
      view.data = copy.get();
      file.aligned_copies_.push_back(std::move(copy));
    }
    file.tensors_.push_back({tensor.name, view});
  }

  Status build(const SafetensorsHeader& header) {
    POLAR_RETURN_IF_ERROR(check_offsets(header.tensors));
    for (const HeaderTensor& tensor : header.tensors) POLAR_RETURN_IF_ERROR(add(tensor));
    std::sort(file.tensors_.begin(), file.tensors_.end(),
              [](const FileTensor& a, const FileTensor& b) { return a.name < b.name; });
    file.metadata_ = header.metadata;
    return {};
  }

  static Result<SafetensorsFile> parse(std::span<const std::byte> bytes, const std::string& name) {
    if (bytes.size() < kLengthBytes) {
      return bad_input(name, "size", fmt::format("{} bytes", bytes.size()),
                       "at least the 8 bytes of the header's size");
    }
    uint64_t header_bytes;
    std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
    if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - kLengthBytes) {
      return bad_input(name, "header size", fmt::format("{} bytes", header_bytes),
                       fmt::format("at most {} in a safetensors file of {} bytes",
                                   std::min<uint64_t>(kMaxHeaderBytes, bytes.size() - kLengthBytes),
                                   bytes.size()));
    }
    const std::string_view json(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes,
                                header_bytes);
    if (json.empty() || json.front() != '{') {
      return bad_input(name, "header", in_quotes(json.substr(0, 1)), "a JSON object");
    }
    POLAR_ASSIGN(const SafetensorsHeader header, parse_safetensors_header(json, name));
    SafetensorsFile file;
    file.path_ = name;
    SafetensorsBuilder builder{file, bytes.subspan(kLengthBytes + header_bytes)};
    POLAR_RETURN_IF_ERROR(builder.build(header));
    return file;
  }

  static Result<SafetensorsFile> open(const std::string& path) {
    POLAR_ASSIGN(MappedFile map, MappedFile::open(path));
    POLAR_ASSIGN(SafetensorsFile file, parse(map.bytes(), path));
    file.map_ = std::move(map);
    return file;
  }
};

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  return SafetensorsBuilder::open(path);
}

Result<SafetensorsFile> SafetensorsFile::parse(std::span<const std::byte> file,
                                               const std::string& name) {
  return SafetensorsBuilder::parse(file, name);
}

const Tensor* SafetensorsFile::find(std::string_view name) const {
  const auto at =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const FileTensor& a, std::string_view b) { return a.name < b; });
  return at != tensors_.end() && at->name == name ? &at->view : nullptr;
}

Result<Tensor> SafetensorsFile::tensor(std::string_view name) const {
  if (const Tensor* view = find(name)) return *view;
  const auto unsupported = unsupported_.find(name);
  if (unsupported != unsupported_.end()) {
    return bad_input(path_, tensor_key(name), unsupported->second,
                     "F32, F16, BF16 or I32 of at most 4 dimensions");
  }
  return bad_input(path_, tensor_key(name), "nothing", "a tensor of this name");
}

}  // namespace polar::io
