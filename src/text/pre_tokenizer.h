#pragma once
// Cutting a normalised text into words, each of which the model encodes alone: the "pre_tokenizer"
// of a tokenizer.json.

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/regex.h"

namespace polar::text {

/// A text and the words it is cut into, in order and without empty ones.
struct Words {
  std::string text;
  std::vector<Span> spans;
  bool at_start;  // the first word begins where the user's text began
};

/// What becomes of the places where a splitter matches.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

/// Characters that DigitSplit and CharacterSplit match one by one.
enum class CharacterClass { kNumeric, kPunctuation, kWhitespace };

struct RegexSplit {
  Regex regex;
  SplitBehavior behavior;
  bool invert;
};
struct ClassSplit {
  CharacterClass characters;
  SplitBehavior behavior;
};
/// GPT-2's: a space in front (optional), its regex (optional), bytes as characters.
struct ByteLevelSplit {
  bool add_prefix_space;
  std::vector<Regex> regex;  // none or one
};
/// SentencePiece's: spaces become `replacement`, one is put in front, words begin with it.
struct MetaspaceSplit {
  enum class Prepend { kAlways, kFirst, kNever };
  std::string replacement;
  Prepend prepend;
  bool split;
};

using SplitStep = std::variant<RegexSplit, ClassSplit, ByteLevelSplit, MetaspaceSplit>;

/// Steps in order; a Sequence in the file is flattened.
struct PreTokenizer {
  std::vector<SplitStep> steps;

  void apply(Words& words) const;
};

/// The pattern that ByteLevel splits with (GPT-2's `encoder.py`).
extern const char* const kGpt2Pattern;

}  // namespace polar::text
