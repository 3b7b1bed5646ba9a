// Logits and greedy continuations of tiny random models against transformers
// (tests/golden/models/make.py).

#include <gmock/gmock.h>

#include <cmath>
#include <cstdlib>

#include "backend/device.h"
#include "io/safetensors.h"
#include "model/decoder.h"

namespace polar::model {
namespace {

constexpr int kGreedy = 64;

/// A model with one f32 cache of `sequences` sequences, driven by hand: the tests' own few lines of
/// batching.
class Runner {
 public:
  Runner(const std::string& path, int sequences, int length) : sequences_(sequences) {
    auto device = backend::make_cpu_device({2});
    EXPECT_TRUE(device.ok());
    device_ = std::move(device).value();
    auto file = ModelFile::open(path);
    EXPECT_TRUE(file.ok()) << file.error().message;
    file_ = std::make_unique<ModelFile>(std::move(file).value());
    auto weights = load_weights(*device_, *file_);
    EXPECT_TRUE(weights.ok()) << weights.error().message;
    weights_ = std::make_unique<Weights>(std::move(weights).value());
    auto decoder = Decoder::create(*device_, *weights_, {512, 512});
    EXPECT_TRUE(decoder.ok());
    decoder_ = std::move(decoder).value();
    stride_ = (length + backend::kPageTokens - 1) / backend::kPageTokens;
    const ModelConfig& c = weights_->config;
    kv_ = {nullptr, DType::kF32, c.layers, sequences * stride_, c.kv_heads, c.head_dim};
    // What no token has written must never be read: poisoned with NaN.
    cache_.assign(kv_.total_bytes() / sizeof(float), std::nanf(""));
    kv_.data = reinterpret_cast<std::byte*>(cache_.data());
  }

  int vocabulary() const { return weights_->config.vocabulary; }

  struct Rows {
    int sequence;
    int position;
    std::vector<int32_t> tokens;
    bool planned;
  };

  /// Logits of every row, in order.
  std::vector<float> step(const std::vector<Rows>& chunks) {
    std::vector<int32_t> token, position, sequence, point, begin, pages, logit_row;
    int prefill = 0;
    for (size_t c = 0; c < chunks.size(); ++c) {
      begin.push_back(static_cast<int32_t>(token.size()));
      for (size_t i = 0; i < chunks[c].tokens.size(); ++i) {
        logit_row.push_back(static_cast<int32_t>(token.size()));
        token.push_back(chunks[c].tokens[i]);
        position.push_back(chunks[c].position + static_cast<int32_t>(i));
        sequence.push_back(static_cast<int32_t>(c));
        point.push_back(0);
      }
      if (!chunks[c].planned) prefill = static_cast<int>(token.size());
      // Pages in an order that no kernel may rely on.
      for (int p = 0; p < stride_; ++p)
        pages.push_back((p * sequences_ + chunks[c].sequence) % kv_.pages);
    }
    begin.push_back(static_cast<int32_t>(token.size()));
    backend::Batch batch;
    batch.rows = static_cast<int>(token.size());
    batch.sequences = static_cast<int>(chunks.size());
    batch.prefill_rows = prefill;
    batch.token = token.data();
    batch.position = position.data();
    batch.sequence = sequence.data();
    batch.point = point.data();
    batch.chunk_begin = begin.data();
    batch.table_stride = stride_;
    batch.pages = pages.data();
    batch.logit_row = logit_row.data();
    batch.logit_rows = static_cast<int>(logit_row.size());
    const float* logits = decoder_->forward(batch, kv_, dense_, nullptr);
    return {logits, logits + static_cast<size_t>(batch.rows) * vocabulary()};
  }

 private:
  int sequences_, stride_;
  std::unique_ptr<backend::Device> device_;
  std::unique_ptr<ModelFile> file_;
  std::unique_ptr<Weights> weights_;
  std::unique_ptr<Decoder> decoder_;
  DensePlanner dense_;
  std::vector<float> cache_;
  backend::KvView kv_;
};

struct Case {
  std::vector<int32_t> prompt, greedy;
  std::vector<float> logits;
};

std::vector<Case> golden(const std::string& folder) {
  auto file = io::SafetensorsFile::open(std::string(POLAR_GOLDEN_DIR) + "/" + folder +
                                        "/golden.safetensors");
  EXPECT_TRUE(file.ok()) << file.error().message;
  std::vector<Case> cases;
  for (int i = 0; file->find("prompt_" + std::to_string(i)) != nullptr; ++i) {
    const Tensor prompt = *file->find("prompt_" + std::to_string(i));
    const Tensor* continued = file->find("greedy_" + std::to_string(i));
    const Tensor greedy = continued != nullptr ? *continued : Tensor{nullptr, DType::kI32, {0}, 1};
    const Tensor logits = *file->find("logits_" + std::to_string(i));
    cases.push_back({{prompt.as<int32_t>(), prompt.as<int32_t>() + prompt.values()},
                     {greedy.as<int32_t>(), greedy.as<int32_t>() + greedy.values()},
                     {logits.as<float>(), logits.as<float>() + logits.values()}});
  }
  EXPECT_FALSE(cases.empty());
  return cases;
}

double relative_error(const std::vector<float>& found, const std::vector<float>& expected) {
  EXPECT_EQ(found.size(), expected.size());
  double difference = 0, largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_FALSE(std::isnan(found[i]));
    difference = std::max(difference, std::abs(static_cast<double>(found[i]) - expected[i]));
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
  }
  return difference / largest;
}

int best(const float* row, int count) {
  return static_cast<int>(std::max_element(row, row + count) - row);
}

class Parity : public testing::TestWithParam<const char*> {
 protected:
  std::string folder() const { return std::string(POLAR_GOLDEN_DIR) + "/models/" + GetParam(); }
};

TEST_P(Parity, LogitsEqualTransformersOnEveryInstructionSet) {
  const char* forced = std::getenv("POLAR_CPU_ISA");
  const std::string before = forced == nullptr ? "" : forced;
  int sets = 0;
  for (const char* isa : {"portable", "avx2", "avx512", "amx"}) {
    setenv("POLAR_CPU_ISA", isa, 1);
    if (!backend::make_cpu_device({1}).ok()) continue;  // not of this CPU
    ++sets;
    for (const bool planned : {false, true}) {
      for (const Case& expected : golden(std::string("models/") + GetParam())) {
        Runner runner(folder(), 1, 128);
        const auto logits = runner.step({{0, 0, expected.prompt, planned}});
        EXPECT_LE(relative_error(logits, expected.logits), 1e-4)
            << isa << (planned ? ", planned" : ", prefill");
      }
    }
  }
  setenv("POLAR_CPU_ISA", before.c_str(), 1);
  EXPECT_GE(sets, 1);
}

/// The same models as GGUF files (tests/golden/models/make_gguf.py): names, Q and K's order,
/// frequency factors and scaling keys of the other format.
TEST(Gguf, LogitsEqualTransformers) {
  for (const std::string name : {"llama-3.1", "llama-published", "qwen2", "qwen3"}) {
    const std::string path = std::string(POLAR_GOLDEN_DIR) + "/models/" + name + ".gguf";
    for (const Case& expected : golden("models/" + name)) {
      Runner runner(path, 1, 128);
      const auto logits = runner.step({{0, 0, expected.prompt, false}});
      EXPECT_LE(relative_error(logits, expected.logits), 1e-4) << name;
    }
  }
}

TEST_P(Parity, GreedyContinuationsEqualTransformersInOneRaggedBatchAndAlone) {
  const std::vector<Case> cases = golden(std::string("models/") + GetParam());
  const int count = static_cast<int>(cases.size());
  Runner together(folder(), count, 128);
  std::vector<Runner::Rows> prompts;
  for (int i = 0; i < count; ++i) prompts.push_back({i, 0, cases[i].prompt, false});
  const std::vector<float> first = together.step(prompts);
  const int vocabulary = together.vocabulary();

  std::vector<std::unique_ptr<Runner>> alone;
  std::vector<int32_t> next;
  size_t row = 0;
  for (int i = 0; i < count; ++i) {
    alone.push_back(std::make_unique<Runner>(folder(), 1, 128));
    const std::vector<float> own = alone[i]->step({{0, 0, cases[i].prompt, false}});
    const std::vector<float> shared(first.begin() + row * vocabulary,
                                    first.begin() + row * vocabulary + own.size());
    EXPECT_EQ(shared, own) << "prefill of prompt " << i << " depends on the batch";
    row += cases[i].prompt.size();
    next.push_back(best(first.data() + (row - 1) * vocabulary, vocabulary));
  }
  for (int step = 0; step < kGreedy; ++step) {
    std::vector<Runner::Rows> rows;
    for (int i = 0; i < count; ++i) {
      ASSERT_EQ(next[i], cases[i].greedy[step]) << "prompt " << i << ", token " << step;
      rows.push_back({i, static_cast<int>(cases[i].prompt.size()) + step, {next[i]}, true});
    }
    const std::vector<float> logits = together.step(rows);
    for (int i = 0; i < count; ++i) {
      Runner::Rows own = rows[i];
      own.sequence = 0;
      const std::vector<float> lone = alone[i]->step({own});
      const auto begin = logits.begin() + static_cast<ptrdiff_t>(i) * vocabulary;
      ASSERT_TRUE(std::equal(lone.begin(), lone.end(), begin))
          << "decode of prompt " << i << " depends on the batch";
      next[i] = best(lone.data(), vocabulary);
    }
  }
}

TEST_P(Parity, ChunkedPrefillIsExact) {
  for (const Case& expected : golden(std::string("models/") + GetParam())) {
    Runner whole(folder(), 1, 128), chunked(folder(), 1, 128);
    const std::vector<float> logits = whole.step({{0, 0, expected.prompt, false}});
    std::vector<float> pieces;
    for (size_t begin = 0; begin < expected.prompt.size();) {
      const size_t end = std::min(expected.prompt.size(), begin + 1 + (begin * 7) % 11);
      const std::vector<int32_t> tokens(expected.prompt.begin() + begin,
                                        expected.prompt.begin() + end);
      const auto piece = chunked.step({{0, static_cast<int>(begin), tokens, begin % 2 == 1}});
      pieces.insert(pieces.end(), piece.begin(), piece.end());
      begin = end;
    }
    EXPECT_EQ(pieces, logits);
  }
}

/// The demo's model as its file holds it (Q4_1 and Q8_0), against transformers on the dequantised
/// weights.
TEST(SmolLm2, LogitsEqualTransformersOnTheSameFile) {
  const char* path = std::getenv("POLAR_SMOLLM2");
  if (path == nullptr) GTEST_SKIP() << "POLAR_SMOLLM2 is unset: the demo's model is not here";
  constexpr int kStride = 96;  // every 96th token of the vocabulary is frozen
  for (const Case& expected : golden("smollm2")) {
    Runner runner(path, 1, 128);
    const std::vector<float> all = runner.step({{0, 0, expected.prompt, false}});
    std::vector<float> logits;
    for (size_t i = 0; i < all.size(); i += kStride) logits.push_back(all[i]);
    EXPECT_LE(relative_error(logits, expected.logits), 1e-4);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Parity,
                         testing::Values("opt", "opt-post-norm", "llama-odd", "llama-linear",
                                         "llama-3.1", "llama-published", "mistral", "qwen2",
                                         "qwen3"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace_if(
                               name.begin(), name.end(),
                               [](char c) { return c == '-' || c == '.'; }, '_');
                           return name;
                         });

}  // namespace
}  // namespace polar::model
