#pragma once
// Full KV pages by what they hold, so that requests with a common prefix compute and store it once.

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "backend/step.h"
#include "cache/page_pool.h"

namespace polar::cache {

/// A tree of full pages: a node is one page of tokens behind its parent's. Nodes are found by a
/// chained xxh3 hash and confirmed by parent, salt and tokens, so a hash collision is a miss and
/// never a wrong page. The salt tells keys and values apart that are not interchangeable although
/// their tokens are equal: 0 is KV from dense computation, anything else the operating point whose
/// steps wrote it.
///
/// The cache holds one reference to each of its pages. A page that nobody else holds is evictable,
/// least recently released first. Users release a sequence's pages from the last to the first
/// (`release`), and whoever holds a page holds all pages before it; so the next page to evict is
/// always a leaf. Not for concurrent use.
class PrefixCache {
 public:
  using Node = int32_t;
  static constexpr Node kRoot = -1;
  static constexpr Node kNone = -2;

  struct Found {
    Node node = kNone;
    int32_t page = -1;
  };

  /// `hash_bits` < 64 shortens the hash: for tests of collisions.
  explicit PrefixCache(PagePool& pool, int hash_bits = 64);

  /// The child of `parent` that holds these 16 tokens; retains its page for the caller.
  std::optional<Found> find(Node parent, std::span<const int32_t> tokens, uint64_t salt);

  /// Offers the caller's full page as a child of `parent`, which the caller holds. Returns the node
  /// that now stands for it. Its page is the caller's own; or, if the same content was there
  /// already, the older page: then the caller's reference to its own page has been exchanged for
  /// one to that page. `node` is kNone on a hash collision: the page, and what follows it, cannot
  /// be cached.
  Found insert(Node parent, std::span<const int32_t> tokens, uint64_t salt, int32_t page);

  /// True if insert() would find the same content there already.
  bool holds(Node parent, std::span<const int32_t> tokens, uint64_t salt) const;

  /// A page for the caller: a free one, or the least recently released of the cached ones that
  /// nobody holds; -1 if there is none.
  int32_t allocate();

  /// Gives a sequence's reference to a page back.
  void release(int32_t page);

  /// Pages that allocate() can still give.
  int available() const { return pool_.free_pages() + evictable_; }
  int cached_pages() const { return static_cast<int>(by_hash_.size()); }
  int64_t evictions() const { return evictions_; }

 private:
  struct Entry {
    std::array<int32_t, backend::kPageTokens> tokens;
    uint64_t hash = 0;
    uint64_t salt = 0;
    Node parent = kRoot;
    int32_t page = -1;
    int32_t children = 0;
    Node previous = kNone, next = kNone;  // in the list of evictable entries
    bool evictable = false;
  };

  uint64_t hash(Node parent, std::span<const int32_t> tokens, uint64_t salt) const;
  Node lookup(uint64_t hash) const;
  bool matches(Node node, Node parent, std::span<const int32_t> tokens, uint64_t salt) const;
  void hold(Node node);
  void make_evictable(Node node);
  void unlink(Node node);
  void evict_oldest();

  PagePool& pool_;
  uint64_t hash_mask_;
  std::vector<Entry> entries_;
  std::vector<Node> unused_;
  std::vector<Node> node_of_page_;  // [pages], kNone when not cached
  std::unordered_map<uint64_t, Node> by_hash_;
  Node oldest_ = kNone, newest_ = kNone;
  int evictable_ = 0;
  int64_t evictions_ = 0;
};

}  // namespace polar::cache
