// Folders with one thing wrong: a tensor missing, of another shape or type, or one too many.

#include "model/model_file.h"

#include <gtest/gtest.h>

#include "io/test_files.h"

namespace polar::model {
namespace {

using io::FileTensor;

class ModelFolder : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string golden = std::string(POLAR_GOLDEN_DIR) + "/models/" + GetParam();
    folder_.write("config.json", io::read_file(golden + "/config.json"));
    auto file = io::ShardedSafetensors::open(golden);
    ASSERT_TRUE(file.ok());
    file_.emplace(std::move(file).value());
  }

  /// The file of these tensors is refused in one sentence that names `name`.
  void refused(const std::vector<FileTensor>& tensors, const std::string& name) {
    const std::string path = folder_.path() + "/model.safetensors";
    ASSERT_TRUE(io::write_safetensors(path, tensors, {}).ok());
    const auto file = ModelFile::open(folder_.path());
    ASSERT_FALSE(file.ok()) << name;
    io::expect_sentence(file.error(), path);
    EXPECT_NE(file.error().message.find(name), std::string::npos) << file.error().message;
  }

  io::TempFolder folder_;
  std::optional<io::ShardedSafetensors> file_;
};

TEST_P(ModelFolder, AcceptsTheWholeFile) {
  ASSERT_TRUE(
      io::write_safetensors(folder_.path() + "/model.safetensors", file_->tensors(), {}).ok());
  const auto file = ModelFile::open(folder_.path());
  ASSERT_TRUE(file.ok()) << file.error().message;
}

TEST_P(ModelFolder, RefusesEachTensorMissingReshapedAndRetyped) {
  const std::vector<FileTensor>& whole = file_->tensors();
  for (size_t i = 0; i < whole.size(); ++i) {
    // transformers stores the head of a tied model as well; it is not read then.
    if (whole[i].name == "lm_head.weight" &&
        ModelFile::open(std::string(POLAR_GOLDEN_DIR) + "/models/" + GetParam())
            ->config()
            .tied_embeddings)
      continue;
    std::vector<FileTensor> changed = whole;
    changed.erase(changed.begin() + static_cast<ptrdiff_t>(i));
    refused(changed, whole[i].name);

    changed = whole;  // [a, b] as [1, a b], [a] as [1, a]
    changed[i].view.shape = {1, whole[i].view.values(), 1, 1};
    changed[i].view.rank = 2;
    refused(changed, whole[i].name);

    changed = whole;  // one row less
    changed[i].view.shape[0] -= 1;
    refused(changed, whole[i].name);

    changed = whole;
    std::vector<int32_t> integers(whole[i].view.values());
    changed[i].view.data = integers.data();
    changed[i].view.dtype = DType::kI32;
    refused(changed, whole[i].name);
  }
}

TEST_P(ModelFolder, RefusesTensorsThatTheFamilyDoesNotHave) {
  std::vector<FileTensor> tensors = file_->tensors();
  FileTensor extra = tensors.front();
  extra.name = "model.layers.0.self_attn.sinks";
  tensors.push_back(extra);
  refused(tensors, extra.name);
  tensors.back().name = "model.layers.0.self_attn.rotary_emb.inv_freq";  // old files hold these
  ASSERT_TRUE(io::write_safetensors(folder_.path() + "/model.safetensors", tensors, {}).ok());
  EXPECT_TRUE(ModelFile::open(folder_.path()).ok());
}

INSTANTIATE_TEST_SUITE_P(Families, ModelFolder,
                         testing::Values("opt", "opt-post-norm", "mistral", "qwen2", "qwen3"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(ModelFile, OptIsReadWithoutItsOuterPrefixToo) {
  const std::string golden = std::string(POLAR_GOLDEN_DIR) + "/models/opt";
  const auto original = ModelFile::open(golden);
  const auto file = io::ShardedSafetensors::open(golden);
  ASSERT_TRUE(original.ok() && file.ok());
  std::vector<FileTensor> tensors = file->tensors();
  for (FileTensor& tensor : tensors) {
    if (tensor.name.starts_with("model.")) tensor.name = tensor.name.substr(6);
  }
  const io::TempFolder folder;
  folder.write("config.json", io::read_file(golden + "/config.json"));
  ASSERT_TRUE(io::write_safetensors(folder.path() + "/model.safetensors", tensors, {}).ok());
  const auto renamed = ModelFile::open(folder.path());
  ASSERT_TRUE(renamed.ok()) << renamed.error().message;
  EXPECT_EQ(renamed->fingerprint(), original->fingerprint());
}

TEST(ModelFile, FingerprintsTellModelsApart) {
  const std::string golden = std::string(POLAR_GOLDEN_DIR) + "/models/";
  const auto open = [&](const char* name) { return ModelFile::open(golden + name)->fingerprint(); };
  EXPECT_EQ(open("qwen2"), open("qwen2"));
  EXPECT_NE(open("qwen2"), open("qwen3"));
  // One changed weight of the first rows of one tensor.
  const auto file = io::ShardedSafetensors::open(golden + "qwen2");
  std::vector<FileTensor> tensors = file->tensors();
  std::vector<uint16_t> values(tensors[3].view.as<uint16_t>(),
                               tensors[3].view.as<uint16_t>() + tensors[3].view.values());
  values[0] ^= 1;
  tensors[3].view.data = values.data();
  const io::TempFolder folder;
  folder.write("config.json", io::read_file(golden + "qwen2/config.json"));
  ASSERT_TRUE(io::write_safetensors(folder.path() + "/model.safetensors", tensors, {}).ok());
  EXPECT_NE(ModelFile::open(folder.path())->fingerprint(), open("qwen2"));
}

}  // namespace
}  // namespace polar::model
