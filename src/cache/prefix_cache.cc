#define XXH_INLINE_ALL
#include "cache/prefix_cache.h"

#include <xxhash.h>

#include <algorithm>

namespace polar::cache {

using backend::kPageTokens;

PrefixCache::PrefixCache(PagePool& pool, int hash_bits)
    : pool_(pool),
      hash_mask_(hash_bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << hash_bits) - 1),
      node_of_page_(pool.pages(), kNone) {}

uint64_t PrefixCache::hash(Node parent, std::span<const int32_t> tokens, uint64_t salt) const {
  POLAR_CHECK(tokens.size() == kPageTokens);
  const uint64_t seed =
      (parent == kRoot ? 0 : entries_[parent].hash) * 0x9e3779b97f4a7c15ull + salt;
  return XXH3_64bits_withSeed(tokens.data(), tokens.size_bytes(), seed) & hash_mask_;
}

PrefixCache::Node PrefixCache::lookup(uint64_t hash) const {
  const auto found = by_hash_.find(hash);
  return found == by_hash_.end() ? kNone : found->second;
}

bool PrefixCache::matches(Node node, Node parent, std::span<const int32_t> tokens,
                          uint64_t salt) const {
  const Entry& entry = entries_[node];
  return entry.parent == parent && entry.salt == salt &&
         std::equal(tokens.begin(), tokens.end(), entry.tokens.begin());
}

bool PrefixCache::holds(Node parent, std::span<const int32_t> tokens, uint64_t salt) const {
  const Node node = lookup(hash(parent, tokens, salt));
  return node != kNone && matches(node, parent, tokens, salt);
}

std::optional<PrefixCache::Found> PrefixCache::find(Node parent, std::span<const int32_t> tokens,
                                                    uint64_t salt) {
  const Node node = lookup(hash(parent, tokens, salt));
  if (node == kNone || !matches(node, parent, tokens, salt)) return std::nullopt;
  hold(node);
  return Found{node, entries_[node].page};
}

PrefixCache::Found PrefixCache::insert(Node parent, std::span<const int32_t> tokens, uint64_t salt,
                                       int32_t page) {
  POLAR_CHECK(node_of_page_[page] == kNone);
  const uint64_t key = hash(parent, tokens, salt);
  if (const Node node = lookup(key); node != kNone) {
    if (!matches(node, parent, tokens, salt)) return {kNone, page};
    hold(node);
    pool_.release(page);
    return {node, entries_[node].page};
  }
  Node node;
  if (unused_.empty()) {
    node = static_cast<Node>(entries_.size());
    entries_.emplace_back();
  } else {
    node = unused_.back();
    unused_.pop_back();
  }
  Entry& entry = entries_[node];
  entry = {};
  std::copy(tokens.begin(), tokens.end(), entry.tokens.begin());
  entry.hash = key;
  entry.salt = salt;
  entry.parent = parent;
  entry.page = page;
  if (parent != kRoot) ++entries_[parent].children;
  by_hash_.emplace(key, node);
  node_of_page_[page] = node;
  pool_.retain(page);
  return {node, page};
}

void PrefixCache::hold(Node node) {
  if (entries_[node].evictable) unlink(node);
  pool_.retain(entries_[node].page);
}

int32_t PrefixCache::allocate() {
  if (pool_.free_pages() == 0 && evictable_ > 0) evict_oldest();
  return pool_.allocate();
}

void PrefixCache::release(int32_t page) {
  pool_.release(page);
  const Node node = node_of_page_[page];
  if (node != kNone && pool_.references(page) == 1) make_evictable(node);
}

void PrefixCache::make_evictable(Node node) {
  Entry& entry = entries_[node];
  POLAR_CHECK(!entry.evictable);
  entry.evictable = true;
  entry.previous = newest_;
  entry.next = kNone;
  if (newest_ != kNone) entries_[newest_].next = node;
  newest_ = node;
  if (oldest_ == kNone) oldest_ = node;
  ++evictable_;
}

void PrefixCache::unlink(Node node) {
  Entry& entry = entries_[node];
  (entry.previous == kNone ? oldest_ : entries_[entry.previous].next) = entry.next;
  (entry.next == kNone ? newest_ : entries_[entry.next].previous) = entry.previous;
  entry.evictable = false;
  --evictable_;
}

void PrefixCache::evict_oldest() {
  const Node node = oldest_;
  Entry& entry = entries_[node];
  POLAR_CHECK(entry.children == 0);
  unlink(node);
  if (entry.parent != kRoot) --entries_[entry.parent].children;
  by_hash_.erase(entry.hash);
  node_of_page_[entry.page] = kNone;
  unused_.push_back(node);
  ++evictions_;
  POLAR_CHECK(pool_.release(entry.page));
}

}  // namespace polar::cache
