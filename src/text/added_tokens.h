#pragma once
// Tokens that are found in the text before anything else happens to it: "added_tokens".

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/bpe.h"
#include "text/regex.h"

namespace polar::text {

struct AddedToken {
  TokenId id;
  std::string content;
  bool special = false;      // left out by decode(skip_special_tokens)
  bool normalized = false;   // looked for in the normalised text, itself normalised
  bool single_word = false;  // only between characters that are no word characters
  bool lstrip = false;       // swallows the white space before it
  bool rstrip = false;       // swallows the white space behind it
};

/// Longest content in bytes; what is longer is absurd, and would make matching quadratic.
inline constexpr size_t kMaxAddedToken = 4096;

/// Finds the leftmost and of those the longest token, over a trie of bytes.
class AddedTokenMatcher {
 public:
  /// A stretch of a text: a token (`id` >= 0), or text between tokens.
  struct Section {
    Span span;
    TokenId id;
  };

  /// `content` is what is looked for (the token's own, or its normal form); empty ones never match.
  void add(std::string_view content, AddedToken token);

  /// Cuts `text` (valid UTF-8) into sections, in order, without empty ones between tokens.
  void split(std::string_view text, std::vector<Section>& sections) const;

 private:
  struct Node {
    int32_t token = -1;
  };
  const AddedToken* longest_at(std::string_view text, size_t at, size_t& end) const;

  std::vector<Node> nodes_{1};
  std::unordered_map<uint64_t, uint32_t> edges_;  // (node << 8 | byte) -> node
  std::vector<AddedToken> tokens_;
  bool first_bytes_[256] = {};
};

}  // namespace polar::text
