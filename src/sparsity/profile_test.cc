#include "sparsity/profile.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cmath>
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
  std::string complaint(const std::string& from, const std::string& to,
                        const Profile& good = sample()) {
    EXPECT_TRUE(write_profile(folder(), good).ok());
    std::string changed = text();
    const size_t at = changed.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    write(changed.replace(at, from.size(), to));
    const auto result = read_profile(folder());
    EXPECT_FALSE(result.ok());
    std::string message = result.ok() ? "" : result.error().message;
    EXPECT_THAT(message, HasSubstr("profile.json: "));
    EXPECT_EQ(message.find('\n'), std::string::npos);
    return message;
  }

  /// Layer 1 is hybrid: one unit static, the other routed; layer 2 is routed with pages below.
  static Profile routed_sample() {
    Profile profile = sample();
    std::vector<backend::UnitBudget>& budgets = profile.points[1].budgets;
    budgets[2] = {ReadKind::kFull, ReadKind::kWindow, 0};
    budgets[3] = {ReadKind::kRouted, ReadKind::kNone, 0};
    budgets[4] = {ReadKind::kRouted, ReadKind::kPages, 125};
    budgets[5] = {ReadKind::kRouted, ReadKind::kWindow, 0};
    profile.points[1].limits.routed = 1;
    return profile;
  }

  static Routers routers() {
    Routers routers;
    routers.hidden = 4;
    routers.kv_heads = 2;
    routers.ffn = 8;
    routers.heads.resize(3);
    routers.mlps.resize(3);
    for (const int layer : {1, 2}) routers.heads[layer] = {{1, 2, 3, 4, 5, 6, 7, 8}, {0.5, -0.5}};
    return routers;
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

TEST_F(ProfileFile, SummariesAndLeastPagesRoundTripAsVersion2) {
  Profile written = sample();
  written.points[1].budgets[2].summaries = true;  // a window
  written.points[1].budgets[4].least = 7;
  written.points[1].budgets[5] = {ReadKind::kRouted, ReadKind::kPages, 80, 9, true};
  written.points[1].limits.routed = 1;
  ASSERT_TRUE(write_profile(folder(), written).ok());
  EXPECT_THAT(text(), HasSubstr("\"version\": 2"));
  EXPECT_THAT(text(), HasSubstr("\"window + summaries\""));
  EXPECT_THAT(text(), HasSubstr("\"pages:250 least 7\""));
  EXPECT_THAT(text(), HasSubstr("\"routed, else pages:80 least 9 + summaries\""));
  const auto read = read_profile(folder());
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_TRUE(read->uses_summaries());
  for (size_t u = 0; u < 6; ++u) {
    const backend::UnitBudget &got = read->points[1].budgets[u],
                              &want = written.points[1].budgets[u];
    EXPECT_EQ(got.kind, want.kind);
    EXPECT_EQ(got.pages_per_mille, want.pages_per_mille);
    EXPECT_EQ(got.least, want.least);
    EXPECT_EQ(got.summaries, want.summaries);
  }
  for (const char* wrong :
       {"none + summaries", "full + summaries", "window + summaries + summaries",
        "pages:250 least 0", "pages:250 least 65536", "pages:250 least", "pages: least 7",
        "pages:+250", "pages:0 least 7"}) {
    EXPECT_THAT(complaint("pages:250 least 7", wrong, written),
                HasSubstr("expected none, window, pages:N"))
        << wrong;
  }
}

TEST_F(ProfileFile, SaysWhatIsWrong) {
  EXPECT_THAT(complaint("\"version\": 1", "\"version\": 3"),
              HasSubstr("version: found 3, expected 1 or 2"));
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
  EXPECT_THAT(complaint("\"effective_density\": 0.31", "\"effective_density\": 0"),
              HasSubstr("effective_density"));
  EXPECT_THAT(complaint("\"effective_density\": 0.31", "\"effective_density\": 1.31"),
              HasSubstr("a share in (0, 1]"));
  EXPECT_THAT(complaint("\"kl\": 0.0", "\"kl\": null"), HasSubstr("kl"));
}

TEST_F(ProfileFile, RoutedAndHybridLayersRoundTripWithTheirRouters) {
  const Profile written = routed_sample();
  ASSERT_TRUE(write_profile(folder(), written).ok());
  ASSERT_TRUE(write_routers(folder(), routers()).ok());
  const auto read = open_profile(folder(), {3, 4, 2, 8}, written.fingerprint);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->points[1].limits.routed, 1);
  EXPECT_EQ(read->points[0].limits.routed, 0);
  for (size_t u = 0; u < 6; ++u) {
    const auto &one = written.points[1].budgets[u], &two = read->points[1].budgets[u];
    EXPECT_EQ(one.kind, two.kind) << u;
    EXPECT_EQ(one.pages_per_mille, two.pages_per_mille) << u;
    EXPECT_EQ(one.fallback, two.fallback) << u;
  }
  ASSERT_NE(read->routers, nullptr);
  EXPECT_EQ(read->routers->heads[2].weight, routers().heads[2].weight);
  EXPECT_TRUE(read->selects_pages(2));
  EXPECT_FALSE(read->routes_units(0));
}

TEST_F(ProfileFile, ARoutedProfileIsRefusedWithoutItsRouters) {
  ASSERT_TRUE(write_profile(folder(), routed_sample()).ok());
  const auto open = [&] {
    const auto profile = open_profile(folder(), {3, 4, 2, 8}, "0123456789abcdef");
    return profile.ok() ? std::string() : profile.error().message;
  };
  EXPECT_THAT(open(), HasSubstr("routers.safetensors"));
  Routers some = routers();
  some.heads[2] = {};
  ASSERT_TRUE(write_routers(folder(), some).ok());
  EXPECT_THAT(open(), HasSubstr("layers.2.head_router.weight: found no router"));
  some = routers();
  some.heads[1].bias[1] = NAN;
  ASSERT_TRUE(write_routers(folder(), some).ok());
  EXPECT_THAT(open(), HasSubstr("layers.1.head_router.bias: found nan, expected finite"));
  ASSERT_TRUE(write_routers(folder(), routers()).ok());
  EXPECT_EQ(open(), "");
  const auto file = std::filesystem::path(folder()) / "routers.safetensors";
  for (auto size = std::filesystem::file_size(file) - 1; size > 0; size = size * 2 / 3) {
    std::filesystem::resize_file(file, size);
    EXPECT_THAT(open(), HasSubstr("routers.safetensors: ")) << size;
    EXPECT_EQ(open().find('\n'), std::string::npos);
  }
}

/// A point's recall, and the routers whose numbers of neurons it takes.
TEST_F(ProfileFile, NeuronBudgetsRoundTripWithTheirRouters) {
  Profile written = sample();
  written.points[1].recall = 0.97;
  written.points[1].quality.neuron_share = 0.25;
  ASSERT_TRUE(write_profile(folder(), written).ok());
  const auto open = [&] { return open_profile(folder(), {3, 4, 2, 8}, written.fingerprint); };
  ASSERT_FALSE(open().ok());
  EXPECT_THAT(open().error().message, HasSubstr("routers.safetensors"));
  Routers routed = routers();
  ASSERT_TRUE(write_routers(folder(), routed).ok());
  ASSERT_FALSE(open().ok());
  EXPECT_THAT(open().error().message, HasSubstr("routers choose no neurons"));
  routed.recalls = {0.9, 0.99};
  routed.batches = {1};
  routed.mlps[1].rank = 1;
  routed.mlps[1].a = {1, 2, 3, 4};
  routed.mlps[1].b = routed.mlps[1].bias = {1, 2, 3, 4, 5, 6, 7, 8};
  routed.mlps[1].neurons = {3, 6};
  ASSERT_TRUE(write_routers(folder(), routed).ok());
  const auto read = open();
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_TRUE(read->routes_neurons());
  EXPECT_EQ(read->points[0].recall, 0);
  EXPECT_DOUBLE_EQ(read->points[1].recall, 0.97);
  EXPECT_DOUBLE_EQ(read->points[1].quality.neuron_share, 0.25);
  EXPECT_EQ(neurons_for(*read->routers, 1, 1, read->points[1].recall), 5);
  written.points[1].recall = 0.999;
  ASSERT_TRUE(write_profile(folder(), written).ok());
  ASSERT_FALSE(open().ok());
  EXPECT_THAT(open().error().message, HasSubstr("recall: found 0.999"));
  EXPECT_THAT(complaint("\"recall\": 0.999", "\"recall\": 1.5", written),
              HasSubstr("a share in (0, 1]"));
  EXPECT_THAT(complaint("\"routed\": 0", "\"recall\": 0.9", written),
              HasSubstr("points[0].recall"));
}

TEST_F(ProfileFile, SaysWhatIsWrongWithRoutedUnits) {
  const auto told = [&](const std::string& from, const std::string& to) {
    return complaint(from, to, routed_sample());
  };
  EXPECT_THAT(told("\"routed\": 1", "\"routed\": 0"), HasSubstr("routed: found 0"));
  EXPECT_THAT(told("\"routed\": 1", "\"routed\": 3"), HasSubstr("routed: found 3"));
  EXPECT_THAT(told("\"routed\": 1", "\"other\": 1"), HasSubstr("nothing, though units are"));
  EXPECT_THAT(told("routed, else pages:125", "routed, else pages:0"), HasSubstr("pages:0"));
  EXPECT_THAT(told("routed, else none", "routed, else full"), HasSubstr("else full"));
  EXPECT_THAT(told("routed, else none", "routed"), HasSubstr("found \"routed\""));
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
