#include "io/gguf_types.h"

#include <array>

namespace polar::io {
namespace {

struct TypeInfo {
  std::string_view name;
  size_t bytes;
};

constexpr std::array<TypeInfo, 13> kTypes = {{{"u8", 1},
                                              {"i8", 1},
                                              {"u16", 2},
                                              {"i16", 2},
                                              {"u32", 4},
                                              {"i32", 4},
                                              {"f32", 4},
                                              {"bool", 1},
                                              {"string", 0},
                                              {"array", 0},
                                              {"u64", 8},
                                              {"i64", 8},
                                              {"f64", 8}}};

// ggml_type, by number; gaps are types that were removed.
constexpr std::array<GgmlType, 41> kGgmlTypes = {{
    {"f32", DType::kF32},
    {"f16", DType::kF16},
    {"q4_0", DType::kQ4_0},
    {"q4_1", DType::kQ4_1},
    {"q4_2", {}},
    {"q4_3", {}},
    {"q5_0", DType::kQ5_0},
    {"q5_1", DType::kQ5_1},
    {"q8_0", DType::kQ8_0},
    {"q8_1", {}},
    {"q2_k", {}},
    {"q3_k", {}},
    {"q4_k", DType::kQ4_K},
    {"q5_k", DType::kQ5_K},
    {"q6_k", DType::kQ6_K},
    {"q8_k", {}},
    {"iq2_xxs", {}},
    {"iq2_xs", {}},
    {"iq3_xxs", {}},
    {"iq1_s", {}},
    {"iq4_nl", {}},
    {"iq3_s", {}},
    {"iq2_s", {}},
    {"iq4_xs", {}},
    {"i8", {}},
    {"i16", {}},
    {"i32", DType::kI32},
    {"i64", {}},
    {"f64", {}},
    {"iq1_m", {}},
    {"bf16", DType::kBF16},
    {"q4_0_4_4", {}},
    {"q4_0_4_8", {}},
    {"q4_0_8_8", {}},
    {"tq1_0", {}},
    {"tq2_0", {}},
    {"iq4_nl_4_4", {}},
    {"iq4_nl_4_8", {}},
    {"iq4_nl_8_8", {}},
    {"mxfp4", {}},
    {"nvfp4", {}},
}};

}  // namespace

size_t gguf_type_bytes(GgufType type) {
  return kTypes[static_cast<size_t>(type)].bytes;
}
std::string_view gguf_type_name(GgufType type) {
  return kTypes[static_cast<size_t>(type)].name;
}

GgmlType ggml_type(uint32_t number) {
  return number < kGgmlTypes.size() ? kGgmlTypes[number] : GgmlType{};
}

}  // namespace polar::io
