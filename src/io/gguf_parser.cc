// Validates a GGUF file while walking over it once: magic, version, counts, metadata, tensor
// descriptions, alignment, data. Nothing is allocated for a count before the file was found large
// enough to hold that many.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "io/gguf.h"
#include "io/gguf_types.h"
#include "io/in_quotes.h"

namespace polar::io {

namespace {

constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr size_t kMaxNameBytes = 65535;  // the format's limit for keys
constexpr int kMaxNesting = 4;           // of arrays in arrays
// The least that one entry takes: key length, type and a one-byte value; name length, number of
// dimensions, one dimension, type and offset.
constexpr uint64_t kMinValueBytes = 8 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;

}  // namespace

class GgufParser {
 public:
  GgufParser(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes) {
    file_.path_ = name;
  }

  static Result<GgufFile> open(const std::string& path) {
    POLAR_ASSIGN(MappedFile map, MappedFile::open(path));
    POLAR_ASSIGN(GgufFile file, GgufParser(map.bytes(), path).parse());
    file.map_ = std::move(map);
    return file;
  }

  Result<GgufFile> parse() {
    uint64_t tensors = 0;
    uint64_t values = 0;
    POLAR_RETURN_IF_ERROR(read_preamble(tensors, values));
    for (uint64_t i = 0; i < values; ++i) POLAR_RETURN_IF_ERROR(read_value(i));
    POLAR_ASSIGN(file_.architecture_, file_.string("general.architecture"));
    POLAR_RETURN_IF_ERROR(check_single_part());
    POLAR_ASSIGN(const uint64_t alignment, alignment_of_data());
    if (tensors > left() / kMinTensorBytes) return impossible_count("tensor count", tensors);
    file_.tensors_.reserve(tensors);
    offsets_.reserve(tensors);
    for (uint64_t i = 0; i < tensors; ++i) POLAR_RETURN_IF_ERROR(read_tensor(i));
    POLAR_RETURN_IF_ERROR(place_tensors(alignment));
    return std::move(file_);
  }

 private:
  size_t left() const { return bytes_.size() - at_; }

  template <typename T>
  bool read(T& value) {
    if (left() < sizeof(T)) return false;
    value = load_unaligned<T>(bytes_.data() + at_);
    at_ += sizeof(T);
    return true;
  }

  bool read_string(std::string_view& text) {
    uint64_t length;
    if (!read(length) || length > left()) return false;
    text = {reinterpret_cast<const char*>(bytes_.data() + at_), length};
    at_ += length;
    return true;
  }

  Error fail(std::string_view key, std::string_view found, std::string_view expected) const {
    return bad_input(file_.path_, key, found, expected);
  }
  Error truncated(std::string_view key) const {
    return fail(key, fmt::format("the file's end at byte {}", bytes_.size()), "more bytes");
  }
  Error impossible_count(std::string_view key, uint64_t count) const {
    return fail(key, fmt::format("{}", count),
                fmt::format("no more than fit into the {} bytes that follow", left()));
  }

  Status read_preamble(uint64_t& tensors, uint64_t& values) {
    std::array<char, 4> magic{};
    if (!read(magic) || std::string_view(magic.data(), 4) != "GGUF") {
      return fail("magic", in_quotes({magic.data(), std::min<size_t>(4, bytes_.size())}),
                  "\"GGUF\"");
    }
    if (!read(file_.version_)) return truncated("version");
    if (file_.version_ != 2 && file_.version_ != 3) {
      const bool swapped = (file_.version_ & 0xFFFFU) == 0 && file_.version_ != 0;
      return fail("version",
                  swapped ? std::string("a big-endian file") : fmt::format("{}", file_.version_),
                  "version 2 or 3, little endian");
    }
    if (!read(tensors)) return truncated("tensor count");
    if (!read(values)) return truncated("metadata count");
    if (values > left() / kMinValueBytes) return impossible_count("metadata count", values);
    return {};
  }

  Status read_value(uint64_t index) {
    const std::string where = fmt::format("metadata entry {}", index);
    std::string_view key;
    if (!read_string(key)) return truncated(where);
    if (key.empty() || key.size() > kMaxNameBytes) {
      return fail(where, fmt::format("a key of {} bytes", key.size()), "1 to 65535 bytes");
    }
    uint32_t type;
    if (!read(type)) return truncated(in_quotes(key));
    if (type > static_cast<uint32_t>(GgufType::kF64)) {
      return fail(in_quotes(key), fmt::format("value type {}", type), "a type from 0 to 12");
    }
    GgufValue value;
    value.type = value.element = static_cast<GgufType>(type);
    if (value.type == GgufType::kArray) {
      POLAR_RETURN_IF_ERROR(read_array_head(key, value.element, value.count));
    }
    value.data = bytes_.data() + at_;
    POLAR_RETURN_IF_ERROR(skip_elements(key, value.element, value.count, 1));
    if (!file_.values_.try_emplace(key, value).second) {
      return fail(in_quotes(key), "the key twice", "unique keys");
    }
    return {};
  }

  Status read_array_head(std::string_view key, GgufType& element, uint64_t& count) {
    uint32_t type;
    if (!read(type)) return truncated(in_quotes(key));
    if (type > static_cast<uint32_t>(GgufType::kF64)) {
      return fail(in_quotes(key), fmt::format("an array of type {}", type), "a type from 0 to 12");
    }
    element = static_cast<GgufType>(type);
    if (!read(count)) return truncated(in_quotes(key));
    return {};
  }

  // Moves over `count` elements, checking that they are there.
  Status skip_elements(std::string_view key, GgufType type, uint64_t count, int nesting) {
    if (const size_t bytes = gguf_type_bytes(type); bytes != 0) {
      if (count > left() / bytes) return impossible_elements(key, count);
      if (type == GgufType::kBool) POLAR_RETURN_IF_ERROR(check_booleans(key, count));
      at_ += count * bytes;
      return {};
    }
    if (type == GgufType::kString) {
      if (count > left() / sizeof(uint64_t)) return impossible_elements(key, count);
      std::string_view text;
      for (uint64_t i = 0; i < count; ++i) {
        if (!read_string(text)) return truncated(in_quotes(key));
      }
      return {};
    }
    if (nesting == kMaxNesting) {
      return fail(in_quotes(key), fmt::format("arrays nested more than {} deep", kMaxNesting),
                  "fewer levels");
    }
    if (count > left() / (sizeof(uint32_t) + sizeof(uint64_t))) {
      return impossible_elements(key, count);
    }
    for (uint64_t i = 0; i < count; ++i) {
      GgufType element{};
      uint64_t elements = 0;
      POLAR_RETURN_IF_ERROR(read_array_head(key, element, elements));
      POLAR_RETURN_IF_ERROR(skip_elements(key, element, elements, nesting + 1));
    }
    return {};
  }

  Error impossible_elements(std::string_view key, uint64_t count) const {
    return fail(in_quotes(key), fmt::format("{} elements", count),
                fmt::format("no more than fit into the {} bytes that follow", left()));
  }

  Status check_booleans(std::string_view key, uint64_t count) const {
    for (uint64_t i = 0; i < count; ++i) {
      const auto byte = std::to_integer<unsigned>(bytes_[at_ + i]);
      if (byte > 1) return fail(in_quotes(key), fmt::format("the boolean {}", byte), "0 or 1");
    }
    return {};
  }

  Status check_single_part() const {
    POLAR_ASSIGN(const uint64_t parts, file_.u64_or("split.count", 1));
    if (parts > 1) {
      return fail("split.count", fmt::format("one of {} parts", parts),
                  "a whole model (join the parts with gguf-split --merge)");
    }
    return {};
  }

  Result<uint64_t> alignment_of_data() const {
    POLAR_ASSIGN(const uint64_t alignment, file_.u64_or("general.alignment", kDefaultAlignment));
    if (alignment < 8 || alignment > kMaxAlignment || (alignment & (alignment - 1)) != 0) {
      return fail("general.alignment", fmt::format("{}", alignment),
                  fmt::format("a power of two from 8 to {}", kMaxAlignment));
    }
    return alignment;
  }

  Status read_tensor(uint64_t index) {
    const std::string where = fmt::format("tensor entry {}", index);
    GgufTensor tensor;
    if (!read_string(tensor.name)) return truncated(where);
    if (tensor.name.empty() || tensor.name.size() > kMaxNameBytes) {
      return fail(where, fmt::format("a name of {} bytes", tensor.name.size()), "1 to 65535 bytes");
    }
    const std::string key = "tensor " + in_quotes(tensor.name);
    if (!file_.tensor_index_.try_emplace(tensor.name, index).second) {
      return fail(key, "the name twice", "unique names");
    }
    uint32_t rank;
    if (!read(rank)) return truncated(key);
    if (rank < 1 || rank > 4) {
      return fail(key, fmt::format("{} dimensions", rank), "1 to 4");
    }
    std::array<uint64_t, 4> extents = {1, 1, 1, 1};  // innermost first, as in the file
    for (uint32_t i = 0; i < rank; ++i) {
      if (!read(extents[i])) return truncated(key);
    }
    uint32_t type;
    uint64_t offset;
    if (!read(type) || !read(offset)) return truncated(key);
    POLAR_RETURN_IF_ERROR(set_type_and_shape(key, type, rank, extents, tensor.view));
    file_.tensors_.push_back(tensor);
    offsets_.push_back(offset);
    return {};
  }

  Status set_type_and_shape(const std::string& key, uint32_t type, uint32_t rank,
                            const std::array<uint64_t, 4>& extents, Tensor& view) const {
    const GgmlType known = ggml_type(type);
    if (!known.dtype) {
      return fail(key,
                  known.name.empty() ? fmt::format("the unknown type {}", type)
                                     : fmt::format("the type {} ({})", known.name, type),
                  "f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k or q6_k");
    }
    view.dtype = *known.dtype;
    view.rank = static_cast<int>(rank);
    const std::string shape = fmt::format("the dimensions [{}]",
                                          fmt::join(extents.begin(), extents.begin() + rank, ", "));
    uint64_t values = 1;
    for (uint32_t i = 0; i < rank; ++i) {
      if (extents[i] == 0 || __builtin_mul_overflow(values, extents[i], &values) ||
          values > bytes_.size() * 8) {  // no type has less than one bit per value
        return fail(key, shape, "dimensions above 0 whose data fit into the file");
      }
      view.shape[rank - 1 - i] = static_cast<int64_t>(extents[i]);
    }
    const auto block = static_cast<uint64_t>(dtype_info(view.dtype).block_values);
    if (extents[0] % block != 0) {
      return fail(
          key, shape,
          fmt::format("a first dimension that is a multiple of {} for {}", block, known.name));
    }
    return {};
  }

  // Sets the data pointers: aligned, inside the file, none overlapping another.
  Status place_tensors(uint64_t alignment) {
    if (file_.tensors_.empty()) return {};
    const uint64_t data_begin = (at_ + alignment - 1) / alignment * alignment;
    const uint64_t data_bytes = data_begin < bytes_.size() ? bytes_.size() - data_begin : 0;
    std::vector<size_t> order(offsets_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return std::pair(offsets_[a], a) < std::pair(offsets_[b], b);
    });
    uint64_t end = 0;  // of the tensor before
    for (const size_t i : order) {
      GgufTensor& tensor = file_.tensors_[i];
      const std::string key = "tensor " + in_quotes(tensor.name);
      const uint64_t offset = offsets_[i];
      if (offset % alignment != 0) {
        return fail(key, fmt::format("the offset {}", offset),
                    fmt::format("a multiple of the alignment {}", alignment));
      }
      const uint64_t bytes =
          dtype_bytes(tensor.view.dtype, static_cast<size_t>(tensor.view.values()));
      if (offset > data_bytes || bytes > data_bytes - offset) {
        return fail(
            key, fmt::format("{} bytes at offset {}", bytes, offset),
            fmt::format("a range within the {} bytes of data: is the file complete", data_bytes));
      }
      if (offset < end) {
        return fail(key, fmt::format("the offset {}", offset),
                    fmt::format("at least {}, where the tensor before it ends", end));
      }
      end = offset + bytes;
      const std::byte* data = bytes_.data() + data_begin + offset;
      tensor.view.data = const_cast<std::byte*>(data);  // the map is read only all the same
    }
    return {};
  }

  std::span<const std::byte> bytes_;
  size_t at_ = 0;
  GgufFile file_;
  std::vector<uint64_t> offsets_;  // of the tensors, relative to the data
};

Result<GgufFile> GgufFile::open(const std::string& path) {
  return GgufParser::open(path);
}

Result<GgufFile> GgufFile::parse(std::span<const std::byte> file, const std::string& name) {
  return GgufParser(file, name).parse();
}

}  // namespace polar::io
