// Configurations as published and as transformers 5 writes them, and the ones that must be refused.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "io/test_files.h"
#include "model/config_reader.h"
#include "model/weights.h"

namespace polar::model {
namespace {

using io::expect_sentence;
using io::TempFolder;
using nlohmann::json;
using testing::Test;

std::string golden_model(const std::string& name) {
  return std::string(POLAR_GOLDEN_DIR) + "/models/" + name;
}

const json kLlama = {{"model_type", "llama"},    {"num_hidden_layers", 2},
                     {"hidden_size", 48},        {"num_attention_heads", 6},
                     {"num_key_value_heads", 2}, {"intermediate_size", 72},
                     {"vocab_size", 96},         {"max_position_embeddings", 128},
                     {"rms_norm_eps", 1e-5},     {"hidden_act", "silu"},
                     {"bos_token_id", 0},        {"eos_token_id", 1},
                     {"rope_theta", 10000.0}};

json patched(json base, const json& changes) {
  base.update(changes);
  return base;
}

class HfConfig : public Test {
 protected:
  Result<ModelConfig> read(const json& config) {
    path_ = folder_.write("config.json", config.dump());
    return read_config_json(path_);
  }
  ModelConfig accepted(const json& config) {
    auto read_config = read(config);
    EXPECT_TRUE(read_config.ok()) << read_config.error().message;
    return read_config.ok() ? *read_config : ModelConfig();
  }
  /// Refused in one sentence that holds `words`.
  void refused(const json& changes, const std::string& words) {
    SCOPED_TRACE(changes.dump());
    const auto config = read(patched(kLlama, changes));
    ASSERT_FALSE(config.ok());
    expect_sentence(config.error(), path_);
    EXPECT_NE(config.error().message.find(words), std::string::npos) << config.error().message;
  }

  TempFolder folder_;
  std::string path_;
};

TEST_F(HfConfig, BothSpellingsOfRopeSayTheSame) {
  const json scaling = {{"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 32}};
  std::vector<ModelConfig> configs;
  for (const char* type_key : {"type", "rope_type"}) {
    configs.push_back(
        accepted(patched(kLlama, {{"rope_theta", 5e5},
                                  {"rope_scaling", patched(scaling, {{type_key, "llama3"}})}})));
  }
  json renewed = kLlama;
  renewed.erase("rope_theta");
  configs.push_back(accepted(patched(
      renewed,
      {{"rope_parameters", patched(scaling, {{"rope_type", "llama3"}, {"rope_theta", 5e5}})}})));
  for (const ModelConfig& config : configs) {
    EXPECT_EQ(config.rope.theta, 5e5);
    EXPECT_EQ(config.rope.scaling, RopeScaling::kLlama3);
    EXPECT_EQ(config.rope.factor, 8.0);
    EXPECT_EQ(config.rope.original_max_positions, 32);
    EXPECT_EQ(config.rope.dim, 8);
  }
}

TEST_F(HfConfig, SlidingWindowsFollowTransformersDefaults) {
  using Windows = std::vector<int>;
  const auto windows = [&](const json& changes) {
    return accepted(patched(patched(kLlama, {{"num_hidden_layers", 3}}), changes)).sliding_window;
  };
  EXPECT_EQ(windows({{"sliding_window", 24}}), Windows({0, 0, 0})) << "llama has none";
  EXPECT_EQ(windows({{"model_type", "mistral"}}), Windows({4096, 4096, 4096}));
  EXPECT_EQ(windows({{"model_type", "mistral"}, {"sliding_window", nullptr}}), Windows({0, 0, 0}));
  EXPECT_EQ(windows({{"model_type", "mistral"}, {"sliding_window", 24}}), Windows({24, 24, 24}));
  json qwen = {{"model_type", "qwen2"}, {"sliding_window", 24}, {"max_window_layers", 1}};
  EXPECT_EQ(windows(qwen), Windows({0, 0, 0}));
  qwen["use_sliding_window"] = true;
  EXPECT_EQ(windows(qwen), Windows({0, 24, 24}));
  qwen["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention"};
  EXPECT_EQ(windows(qwen), Windows({24, 0, 24}));
  qwen.erase("layer_types");
  qwen.erase("max_window_layers");  // 28 layers are full
  EXPECT_EQ(windows(qwen), Windows({0, 0, 0}));
}

TEST_F(HfConfig, FamiliesDifferInValues) {
  const ModelConfig qwen3 = accepted(patched(kLlama, {{"model_type", "qwen3"}}));
  EXPECT_EQ(qwen3.head_dim, 128) << "Qwen3's own default, not hidden / heads";
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias);
  EXPECT_TRUE(accepted(patched(kLlama, {{"model_type", "qwen2"}})).qkv_bias);
  EXPECT_EQ(accepted(patched(kLlama, {{"head_dim", nullptr}})).head_dim, 8);
  const ModelConfig opt = accepted({{"model_type", "opt"},
                                    {"num_hidden_layers", 2},
                                    {"hidden_size", 40},
                                    {"ffn_dim", 48},
                                    {"num_attention_heads", 5},
                                    {"vocab_size", 96},
                                    {"max_position_embeddings", 128},
                                    {"word_embed_proj_dim", 24},
                                    {"do_layer_norm_before", false}});
  EXPECT_EQ(opt.embedding, 24);
  EXPECT_TRUE(opt.norm_after && opt.tied_embeddings && opt.learned_positions);
  EXPECT_FALSE(opt.final_norm);
}

TEST_F(HfConfig, GenerationConfigNamesAllTokensThatEndAText) {
  ASSERT_TRUE(read(kLlama).ok());
  EXPECT_EQ(read_hf_config(folder_.path())->eos_tokens, std::vector<int32_t>({1}));
  const std::string generation =
      folder_.write("generation_config.json", R"({"eos_token_id": [5, 7, 9]})");
  EXPECT_EQ(read_hf_config(folder_.path())->eos_tokens, std::vector<int32_t>({5, 7, 9}));
  folder_.write("generation_config.json", R"({"eos_token_id": [5, "end"]})");
  const auto config = read_hf_config(folder_.path());
  ASSERT_FALSE(config.ok());
  expect_sentence(config.error(), generation);
}

TEST_F(HfConfig, WhatIsUnknownIsNamed) {
  refused({{"model_type", "mamba"}}, "\"mamba\"");
  refused({{"model_type", "two\nlines"}}, "model_type");
  refused({{"hidden_act", "tanh"}}, "\"tanh\"");
  refused({{"quantization_config", {{"bits", 4}}}}, "quantization_config");
  refused({{"rope_scaling", {{"rope_type", "longrope"}, {"factor", 2.0}}}}, "\"longrope\"");
  refused({{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}}, "\"dynamic\"");
  refused({{"partial_rotary_factor", 0.5}}, "partial_rotary_factor");
  refused({{"mlp_bias", true}}, "mlp_bias");
  refused({{"model_type", "qwen2"},
           {"use_sliding_window", true},
           {"sliding_window", 24},
           {"layer_types", {"full_attention", "chunked_attention"}}},
          "layer_types");
}

TEST_F(HfConfig, AbsurdNumbersAreRefused) {
  refused({{"num_hidden_layers", 0}}, "layers");
  refused({{"num_hidden_layers", 5000000000}}, "num_hidden_layers");
  refused({{"num_hidden_layers", 18446744073709551615U}}, "layers");
  refused({{"hidden_size", -48}}, "hidden");
  refused({{"hidden_size", 48.5}}, "hidden_size");
  refused({{"num_attention_heads", 0}}, "heads");
  refused({{"num_key_value_heads", 4}}, "divisor");
  refused({{"num_key_value_heads", 0}}, "heads");
  refused({{"head_dim", 7}}, "even");
  refused({{"vocab_size", 2000000000}}, "vocabulary");
  refused({{"bos_token_id", 96}}, "bos_token_id");
  refused({{"eos_token_id", -1}}, "eos_token_id");
  refused({{"rms_norm_eps", 0}}, "epsilon");
  refused({{"rope_theta", -1.0}}, "rope_theta");
  refused({{"rope_theta", 1e-320}}, "rope_theta");
  refused({{"rope_theta", 1e40}}, "rope_theta");
  refused({{"rope_scaling", {{"type", "linear"}, {"factor", 0.0}}}}, "factor");
  const json yarn = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32}};
  refused({{"rope_theta", 1.0}, {"rope_scaling", yarn}}, "rope_theta");
  refused({{"rope_scaling", patched(yarn, {{"original_max_position_embeddings", 0}})}},
          "original context");
  refused({{"rope_scaling", patched(yarn, {{"beta_fast", -1}})}}, "beta_fast");
  refused({{"rope_scaling", {{"type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 0}}}},
          "low_freq_factor");
}

TEST_F(HfConfig, DeepNestingIsRefusedAndNotFollowed) {
  const std::string deep = std::string(200000, '[') + std::string(200000, ']');
  for (const char* key : {"hidden_size", "eos_token_id", "rope_scaling", "quantization_config"}) {
    std::string text = kLlama.dump();
    const size_t at = text.find('"' + std::string(key) + "\":");
    if (at != std::string::npos) text.replace(at + 1, std::string(key).size(), "was");
    text.replace(text.size() - 1, 1, ",\"" + std::string(key) + "\":" + deep + "}");
    const std::string path = folder_.write("config.json", text);
    const auto config = read_config_json(path);
    ASSERT_FALSE(config.ok()) << key;
    expect_sentence(config.error(), path);
    EXPECT_NE(config.error().message.find(key), std::string::npos) << config.error().message;
  }
}

TEST_F(HfConfig, AnyValueUnderAnyKeyIsReadOrRefused) {
  const json values = {nullptr,
                       true,
                       0,
                       -1,
                       1,
                       3,
                       2147483647,
                       2147483648,
                       1e-320,
                       1e308,
                       "x",
                       "",
                       json::array(),
                       {1, 2},
                       {{"type", 3}},
                       -0.5};
  for (const char* name : {"opt", "llama-3.1", "llama-published", "mistral", "qwen2", "qwen3"}) {
    const json whole = json::parse(io::read_file(golden_model(name) + "/config.json"));
    for (const auto& [key, ignored] : whole.items()) {
      for (const json& value : values) {
        const auto config = read(patched(whole, {{key, value}}));
        if (!config.ok()) {
          expect_sentence(config.error(), path_);
          continue;
        }
        for (const float frequency : rope_table(config->rope).inverse_frequency) {
          ASSERT_TRUE(std::isfinite(frequency)) << name << ": " << key << ": " << value;
        }
      }
    }
  }
}

TEST_F(HfConfig, EveryTruncationIsRefused) {
  const std::string whole = kLlama.dump();
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::string path = folder_.write("config.json", whole.substr(0, size));
    const auto config = read_config_json(path);
    ASSERT_FALSE(config.ok()) << size;
    expect_sentence(config.error(), path);
  }
}

/// A GGUF file in memory whose scalar values tests overwrite.
class Gguf {
 public:
  explicit Gguf(const std::string& name) : bytes_(io::read_file(golden_model(name))) {}

  /// Overwrites the value of a scalar of the same size.
  template <typename T>
  Gguf& set(const std::string& key, T value) {
    const size_t at = bytes_.find(key);
    EXPECT_NE(at, std::string::npos) << key;
    std::memcpy(bytes_.data() + at + key.size() + sizeof(uint32_t), &value, sizeof(value));
    return *this;
  }
  Gguf& replace(const std::string& old, const std::string& with) {
    EXPECT_EQ(old.size(), with.size());
    const size_t at = bytes_.find(old);
    EXPECT_NE(at, std::string::npos) << old;
    bytes_.replace(at, old.size(), with);
    return *this;
  }
  void refused(const std::string& words) const {
    const TempFolder folder;
    const std::string path = folder.write("m.gguf", bytes_);
    const auto file = ModelFile::open(path);
    ASSERT_FALSE(file.ok()) << words;
    expect_sentence(file.error(), path);
    EXPECT_NE(file.error().message.find(words), std::string::npos) << file.error().message;
  }

 private:
  std::string bytes_;
};

TEST(GgufConfig, ReadsWhatTheFoldersSay) {
  for (const char* name : {"llama-3.1", "llama-published", "qwen2", "qwen3"}) {
    SCOPED_TRACE(name);
    auto folder = ModelFile::open(golden_model(name));
    auto file = ModelFile::open(golden_model(std::string(name) + ".gguf"));
    ASSERT_TRUE(folder.ok()) << folder.error().message;
    ASSERT_TRUE(file.ok()) << file.error().message;
    const ModelConfig &a = folder->config(), &b = file->config();
    EXPECT_EQ(a.layers, b.layers);
    EXPECT_EQ(a.heads, b.heads);
    EXPECT_EQ(a.kv_heads, b.kv_heads);
    EXPECT_EQ(a.head_dim, b.head_dim);
    EXPECT_EQ(a.vocabulary, b.vocabulary);
    EXPECT_EQ(a.tied_embeddings, b.tied_embeddings);
    EXPECT_EQ(a.qkv_bias, b.qkv_bias);
    EXPECT_EQ(a.output_bias, b.output_bias);
    EXPECT_EQ(b.eos_tokens, std::vector<int32_t>({1, 5})) << "end of sequence and end of turn";
    const RopeTable from_folder = rope_table(a.rope), from_file = rope_table(b.rope);
    EXPECT_NEAR(from_folder.scale, from_file.scale, 1e-6);
    for (size_t i = 0; i < from_folder.inverse_frequency.size(); ++i) {
      EXPECT_NEAR(from_folder.inverse_frequency[i], from_file.inverse_frequency[i],
                  2e-6 * from_folder.inverse_frequency[i]);
    }
  }
}

TEST(GgufConfig, LyingMetadataIsRefused) {
  const std::string name = "qwen3.gguf";
  Gguf(name).replace("qwen3", "mamba").refused("\"mamba\"");
  Gguf(name).replace("qwen3", "a\nb\"c").refused("general.architecture");
  Gguf(name).set("qwen3.block_count", 0U).refused("layers");
  Gguf(name).set("qwen3.block_count", 1U).refused("blk.1.");
  Gguf(name).set("qwen3.block_count", 3U).refused("blk.2.");
  Gguf(name).set("qwen3.block_count", 0xFFFFFFFFU).refused("block_count");
  Gguf(name).set("qwen3.embedding_length", 37U).refused("token_embd.weight");
  Gguf(name).set("qwen3.attention.head_count", 0U).refused("heads");
  Gguf(name).set("qwen3.attention.head_count_kv", 2U).refused("divisor");
  Gguf(name).set("qwen3.attention.key_length", 1000000U).refused("head_dim");
  Gguf(name).set("qwen3.context_length", 0U).refused("context");
  const float nan = std::nanf("");
  Gguf(name).set("qwen3.rope.freq_base", nan).refused("rope_theta");
  Gguf(name).set("qwen3.attention.layer_norm_rms_epsilon", nan).refused("epsilon");
  Gguf(name).replace("blk.1.attn_q_norm.weight", "blk.1.attn_q_norm.weighx").refused("attn_q_norm");
  Gguf("qwen2.gguf").replace("yarn", "dyna").refused("\"dyna\"");
  Gguf("qwen2.gguf").set("qwen2.rope.scaling.factor", 0.0f).refused("factor");
  Gguf("qwen2.gguf").set("qwen2.rope.scaling.original_context_length", 0U).refused("context");
}

TEST(GgufConfig, FrequencyFactorsMustBePositive) {
  for (const float bad : {0.0f, -1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    const io::ExactCopy copy(io::read_file(golden_model("llama-3.1.gguf")));
    const auto file = io::GgufFile::parse(copy.bytes(), "m.gguf");
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(read_gguf_config(*file).ok());
    file->find("rope_freqs.weight")->as<float>()[3] = bad;
    const auto config = read_gguf_config(*file);
    ASSERT_FALSE(config.ok()) << bad;
    expect_sentence(config.error(), "m.gguf");
  }
}

}  // namespace
}  // namespace polar::model
