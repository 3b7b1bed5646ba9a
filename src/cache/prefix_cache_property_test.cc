#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <map>

#include "cache/prefix_cache.h"

namespace polar::cache {
namespace {

using backend::kPageTokens;

std::vector<int32_t> page_of(int32_t token) {
  return std::vector<int32_t>(kPageTokens, token);
}

/// A user of the cache: a chain of pages, and what each of them holds (salts and tokens from the
/// root).
struct User {
  std::vector<int32_t> pages;
  std::vector<PrefixCache::Node> nodes;
  std::vector<std::pair<int32_t, uint64_t>> content;
};

/// Random users look chains up, extend them, offer their pages and leave, over a small alphabet and
/// (in half of the cases) with a hash of 3 bits. `written` says what each page really holds.
void run_users(int hash_bits) {
  const int page_count = *rc::gen::inRange(4, 24);
  PagePool pool(page_count);
  PrefixCache cache(pool, hash_bits);
  std::map<int32_t, std::vector<std::pair<int32_t, uint64_t>>> written;
  std::vector<User> users;
  const auto leave = [&](size_t which) {
    User& user = users[which];
    for (size_t i = user.pages.size(); i-- > 0;) cache.release(user.pages[i]);
    users.erase(users.begin() + static_cast<ptrdiff_t>(which));
  };
  const int steps = *rc::gen::inRange(0, 200);
  for (int step = 0; step < steps; ++step) {
    const int what = *rc::gen::inRange(0, 4);
    if (what == 0 && !users.empty()) {
      leave(static_cast<size_t>(*rc::gen::inRange<int>(0, static_cast<int>(users.size()))));
    } else {
      const auto chain = *rc::gen::container<std::vector<std::pair<int32_t, uint64_t>>>(
          rc::gen::pair(rc::gen::inRange<int32_t>(0, 2), rc::gen::inRange<uint64_t>(0, 2)));
      User user;
      for (size_t i = 0; i < chain.size() && i < 6; ++i) {
        const auto tokens = page_of(chain[i].first);
        const auto parent = i == 0 ? PrefixCache::kRoot : user.nodes.back();
        user.content.push_back(chain[i]);
        if (const auto found = cache.find(parent, tokens, chain[i].second)) {
          RC_ASSERT(written.at(found->page) == user.content);  // never a wrong page
          user.pages.push_back(found->page);
          user.nodes.push_back(found->node);
          continue;
        }
        const int32_t page = cache.allocate();
        if (page < 0) {
          RC_ASSERT(cache.available() == 0);
          user.content.pop_back();
          break;
        }
        written[page] = user.content;
        user.pages.push_back(page);
        const auto inserted = cache.insert(parent, tokens, chain[i].second, page);
        if (inserted.node == PrefixCache::kNone) {
          RC_ASSERT(hash_bits < 64);
          break;
        }
        RC_ASSERT(inserted.page == page);
        user.nodes.push_back(inserted.node);
      }
      users.push_back(std::move(user));
    }
    // What users hold is theirs, unchanged, and all of it is counted.
    std::map<int32_t, int> held;
    for (const User& user : users) {
      for (size_t i = 0; i < user.pages.size(); ++i) {
        ++held[user.pages[i]];
        const std::vector<std::pair<int32_t, uint64_t>> prefix(user.content.begin(),
                                                               user.content.begin() + i + 1);
        RC_ASSERT(written.at(user.pages[i]) == prefix);
      }
    }
    RC_ASSERT(cache.available() == page_count - static_cast<int>(held.size()));
  }
  while (!users.empty()) leave(0);
  RC_ASSERT(cache.available() == page_count);
  RC_ASSERT(pool.free_pages() + cache.cached_pages() == page_count);
  for (int i = 0; i < page_count; ++i) RC_ASSERT(cache.allocate() >= 0);
  RC_ASSERT(cache.allocate() == -1);
  RC_ASSERT(cache.cached_pages() == 0);
}

TEST(PrefixCache, NeverGivesAWrongPageAndLosesNone) {
  EXPECT_TRUE(rc::check([] { run_users(64); }));
}

TEST(PrefixCache, SurvivesHashCollisions) {
  EXPECT_TRUE(rc::check([] { run_users(3); }));
}

TEST(PrefixCache, EvictsTheLeastRecentlyReleasedAndLeavesFirst) {
  PagePool pool(3);
  PrefixCache cache(pool);
  const int32_t a = cache.allocate(), b = cache.allocate(), c = cache.allocate();
  const auto root_a = cache.insert(PrefixCache::kRoot, page_of(1), 0, a);
  const auto child_b = cache.insert(root_a.node, page_of(2), 0, b);
  const auto root_c = cache.insert(PrefixCache::kRoot, page_of(3), 0, c);
  cache.release(b);
  cache.release(a);
  cache.release(c);
  // a chain's child goes before its parent, and what was used again goes last.
  const auto again = cache.find(PrefixCache::kRoot, page_of(1), 0);
  ASSERT_TRUE(again.has_value());
  cache.release(again->page);
  EXPECT_EQ(cache.allocate(), b);
  EXPECT_EQ(cache.allocate(), c);
  EXPECT_TRUE(cache.holds(PrefixCache::kRoot, page_of(1), 0));
  EXPECT_FALSE(cache.holds(PrefixCache::kRoot, page_of(3), 0));
  EXPECT_EQ(cache.allocate(), a);
  EXPECT_EQ(cache.allocate(), -1);
  EXPECT_NE(child_b.node, root_c.node);
}

TEST(PrefixCache, ExchangesAPageThatIsThereAlready) {
  PagePool pool(2);
  PrefixCache cache(pool);
  const int32_t first = cache.allocate(), second = cache.allocate();
  cache.insert(PrefixCache::kRoot, page_of(7), 0, first);
  const auto same = cache.insert(PrefixCache::kRoot, page_of(7), 0, second);
  EXPECT_EQ(same.page, first);
  EXPECT_EQ(pool.references(second), 0);
  EXPECT_EQ(pool.references(first), 3);
  EXPECT_FALSE(cache.find(PrefixCache::kRoot, page_of(7), 1).has_value());  // another salt
}

}  // namespace
}  // namespace polar::cache
