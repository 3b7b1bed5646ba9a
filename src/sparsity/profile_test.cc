#include "sparsity/profile.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace polar::sparsity {
namespace {

using backend::ReadKind;
using testing::HasSubstr;

class ProfileFile : public testing::Test {
 protected:
  ProfileFile()
      : folder_(std::filesystem::temp_directory_path() /
                ("polar_profile_" + std::to_string(getpid()))) {}
  ~ProfileFile() override { std::filesystem::remove_all(folder_); }

  std::string folder() const { return folder_.string(); }
  std::string text() const {
    std::ifstream in(folder_ / "profile.json");
    std::ostringstream bytes;
    bytes << in.rdbuf();
    return bytes.str();
  }
  void write(const std::string& text) const {
    std::filesystem::create_directories(folder_);
    std::ofstream(folder_ / "profile.json") << text;
  }
  /// Writes a good profile with one passage replaced, and returns the sentence that reading it
  /// gives.
  std::string complaint(const std::string& from, const std::string& to) {
    EXPECT_TRUE(write_profile(folder(), sample()).ok());
    std::string changed = text();
    const size_t at = changed.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    write(changed.replace(at, from.size(), to));
    const auto result = read_profile(folder());
    EXPECT_FALSE(result.ok());
    const std::string message = result.ok() ? "" : result.error().message;
    EXPECT_THAT(message, HasSubstr("profile.json: "));
    EXPECT_EQ(message.find('\n'), std::string::npos);
    return message;
  }

  static Profile sample() {
    Profile profile = window_profile(3, 2, 1, 4, {0});
    profile.fingerprint = "0123456789abcdef";
    profile.context_min = 512;
    profile.context_max = 2048;
    profile.points[1].budgets[3].kind = ReadKind::kNone;
    profile.points[1].budgets[4] = {ReadKind::kPages, ReadKind::kWindow, 250};
    profile.points[1].quality = {0.01, 1.008, 0.002, 0.97, 0.31, "text.txt", 20, 18, 17};
    return profile;
  }

 private:
  std::filesystem::path folder_;
};

TEST_F(ProfileFile, RoundTrips) {
  const Profile written = sample();
  ASSERT_TRUE(write_profile(folder(), written).ok());
  const auto read = read_profile(folder());
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->layers, 3);
  EXPECT_EQ(read->kv_heads, 2);
  EXPECT_EQ(read->fingerprint, written.fingerprint);
  EXPECT_EQ(read->context_max, 2048);
  ASSERT_EQ(read->points.size(), 2u);
  for (size_t p = 0; p < 2; ++p) {
    EXPECT_EQ(read->points[p].name, written.points[p].name);
    EXPECT_EQ(read->points[p].limits.recent, written.points[p].limits.recent);
    for (size_t u = 0; u < 6; ++u) {
      EXPECT_EQ(read->points[p].budgets[u].kind, written.points[p].budgets[u].kind);
      EXPECT_EQ(read->points[p].budgets[u].pages_per_mille,
                written.points[p].budgets[u].pages_per_mille);
    }
  }
  EXPECT_DOUBLE_EQ(read->points[1].quality.perplexity_ratio, 1.008);
  EXPECT_EQ(read->points[1].quality.sparse_needles, 17);
  EXPECT_EQ(read->find("window"), 1);
  EXPECT_EQ(read->find("3%"), -1);
}

TEST_F(ProfileFile, SaysWhatIsWrong) {
  EXPECT_THAT(complaint("\"version\": 1", "\"version\": 2"),
              HasSubstr("version: found 2, expected 1"));
  EXPECT_THAT(complaint("\"layers\": 3", "\"layers\": 4"), HasSubstr("4 layers"));
  EXPECT_THAT(complaint("\"layers\": 3", "\"layers\": 0"), HasSubstr("layers: found 0"));
  EXPECT_THAT(complaint("pages:250", "pages:0"), HasSubstr("pages:0"));
  EXPECT_THAT(complaint("pages:250", "pages:1001"), HasSubstr("pages:1001"));
  EXPECT_THAT(complaint("pages:250", "some"), HasSubstr("some"));
  EXPECT_THAT(complaint("\"name\": \"window\"", "\"name\": \"dense\""), HasSubstr("'dense' twice"));
  EXPECT_THAT(complaint("\"full\"", "\"none\""), HasSubstr("points[0]"));
  EXPECT_THAT(complaint("\"sink\": 1", "\"sink\": -1"), HasSubstr("sink"));
  EXPECT_THAT(complaint("\"context_max\": 2048", "\"context_max\": 1e99"),
              HasSubstr("context_max"));
  EXPECT_THAT(complaint("\"kl\": 0.0", "\"kl\": null"), HasSubstr("kl"));
}

TEST_F(ProfileFile, SurvivesEveryCut) {
  ASSERT_TRUE(write_profile(folder(), sample()).ok());
  const std::string whole = text();
  for (size_t size = 0; size + 3 < whole.size(); size += 7) {
    write(whole.substr(0, size));
    EXPECT_FALSE(read_profile(folder()).ok()) << size;
  }
}

TEST_F(ProfileFile, BelongsToOneModel) {
  const Profile profile = sample();
  EXPECT_TRUE(check_profile(profile, "p", 3, 2, "0123456789abcdef").ok());
  EXPECT_THAT(check_profile(profile, "p", 3, 2, "other").error().message,
              HasSubstr("p: model: found 0123456789abcdef"));
  EXPECT_THAT(check_profile(profile, "p", 3, 8, "0123456789abcdef").error().message,
              HasSubstr("3 layers of 8 KV heads"));
}

TEST_F(ProfileFile, NotThere) {
  EXPECT_THAT(read_profile(folder()).error().message,
              HasSubstr("profile.json: file: found nothing"));
}

}  // namespace
}  // namespace polar::sparsity
