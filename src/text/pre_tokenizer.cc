#include "text/pre_tokenizer.h"

#include <algorithm>

#include "text/byte_level.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace polar::text {

const char* const kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

// A stretch of a word: `matched` by the splitter, or between two matches.
struct Stretch {
  Span span;
  bool matched;
};

void push(std::vector<Span>& out, Span span) {
  if (span.begin < span.end) out.push_back(span);
}

// Neighbouring stretches join into one word as `behavior` says (NormalizedString::split of the
// package). Spans are within the word; `base` is where the word begins.
void cut(const std::vector<Stretch>& stretches, SplitBehavior behavior, size_t base,
         std::vector<Span>& out) {
  std::vector<Span> words;
  bool previous = false;
  const auto visit = [&](const Stretch& stretch) {
    const Span span{base + stretch.span.begin, base + stretch.span.end};
    switch (behavior) {
      case SplitBehavior::kRemoved:
        if (!stretch.matched) words.push_back(span);
        break;
      case SplitBehavior::kIsolated:
        words.push_back(span);
        break;
      case SplitBehavior::kContiguous:
        if (stretch.matched == previous && !words.empty()) {
          words.back().end = span.end;
        } else {
          words.push_back(span);
        }
        break;
      case SplitBehavior::kMergedWithPrevious:
        if (stretch.matched && !previous && !words.empty()) {
          words.back().end = span.end;
        } else {
          words.push_back(span);
        }
        break;
      case SplitBehavior::kMergedWithNext:
        if (stretch.matched && !previous && !words.empty()) {
          words.back().begin = span.begin;
        } else {
          words.push_back(span);
        }
        break;
    }
    previous = stretch.matched;
  };
  if (behavior == SplitBehavior::kMergedWithNext) {
    std::for_each(stretches.rbegin(), stretches.rend(), visit);
    std::reverse(words.begin(), words.end());
  } else {
    std::for_each(stretches.begin(), stretches.end(), visit);
  }
  for (const Span& word : words) push(out, word);
}

void stretches_of(const std::vector<Span>& matches, size_t size, bool invert,
                  std::vector<Stretch>& out) {
  out.clear();
  size_t done = 0;
  for (const Span& match : matches) {
    if (done < match.begin) out.push_back({{done, match.begin}, invert});
    out.push_back({match, !invert});
    done = match.end;
  }
  if (done < size) out.push_back({{done, size}, invert});
}

bool belongs(char32_t value, CharacterClass characters) {
  switch (characters) {
    case CharacterClass::kNumeric:
      return is_numeric(value);
    case CharacterClass::kPunctuation:
      return is_punctuation(value);
    case CharacterClass::kWhitespace:
      return is_whitespace(value);
  }
  return false;
}

void matching_characters(std::string_view word, CharacterClass characters,
                         std::vector<Span>& matches) {
  matches.clear();
  for (size_t at = 0; at < word.size();) {
    const CodePoint point = decode_utf8(word, at);
    if (belongs(point.value, characters)) matches.push_back({at, at + point.length});
    at += point.length;
  }
}

// `matches_of(word, matches)` finds the splitter's places in one word.
template <typename MatchesOf>
void split_each(Words& words, SplitBehavior behavior, bool invert, MatchesOf matches_of) {
  std::vector<Span> out, matches;
  std::vector<Stretch> stretches;
  out.reserve(words.spans.size());
  for (size_t i = 0; i < words.spans.size(); ++i) {
    const Span span = words.spans[i];
    const auto word = std::string_view(words.text).substr(span.begin, span.end - span.begin);
    matches_of(word, matches);
    if (behavior == SplitBehavior::kIsolated) {  // the common case, without the stretches
      size_t done = 0;
      for (const Span& match : matches) {
        push(out, {span.begin + done, span.begin + match.begin});
        push(out, {span.begin + match.begin, span.begin + match.end});
        done = match.end;
      }
      push(out, {span.begin + done, span.end});
    } else {
      stretches_of(matches, word.size(), invert, stretches);
      cut(stretches, behavior, span.begin, out);
    }
    if (i == 0 && words.at_start) {
      words.at_start = !out.empty() && out.front().begin == span.begin;
    }
  }
  words.spans = std::move(out);
}

// Rewrites every word through `rewrite(word, is_first, out)`, which appends to the new text.
template <typename Rewrite>
void rewrite_each(Words& words, Rewrite rewrite) {
  std::string text;
  text.reserve(words.text.size() * 2);
  bool first = words.at_start;
  for (Span& span : words.spans) {
    const size_t begin = text.size();
    rewrite(std::string_view(words.text).substr(span.begin, span.end - span.begin), first, text);
    span = {begin, text.size()};
    first = false;
  }
  words.text = std::move(text);
}

struct Apply {
  Words& words;

  void operator()(const RegexSplit& step) const {
    split_each(words, step.behavior, step.invert,
               [&](std::string_view word, std::vector<Span>& matches) {
                 step.regex.find_all(word, matches);
               });
  }

  void operator()(const ClassSplit& step) const {
    split_each(words, step.behavior, false, [&](std::string_view word, std::vector<Span>& matches) {
      matching_characters(word, step.characters, matches);
    });
  }

  void operator()(const ByteLevelSplit& step) const {
    if (step.add_prefix_space) {
      rewrite_each(words, [](std::string_view word, bool, std::string& out) {
        if (!word.starts_with(' ')) out += ' ';
        out += word;
      });
    }
    if (!step.regex.empty()) {
      split_each(words, SplitBehavior::kIsolated, false,
                 [&](std::string_view word, std::vector<Span>& matches) {
                   step.regex.front().find_all(word, matches);
                 });
    }
    rewrite_each(
        words, [](std::string_view word, bool, std::string& out) { append_byte_level(out, word); });
  }

  void operator()(const MetaspaceSplit& step) const {
    rewrite_each(words, [&](std::string_view word, bool first, std::string& out) {
      const size_t begin = out.size();
      for (char c : word) {
        if (c == ' ') {
          out += step.replacement;
        } else {
          out += c;
        }
      }
      const bool wanted = step.prepend == MetaspaceSplit::Prepend::kAlways ||
                          (step.prepend == MetaspaceSplit::Prepend::kFirst && first);
      if (wanted && !std::string_view(out).substr(begin).starts_with(step.replacement)) {
        out.insert(begin, step.replacement);
      }
    });
    if (step.split) {
      split_each(words, SplitBehavior::kMergedWithNext, false,
                 [&](std::string_view word, std::vector<Span>& matches) {
                   matches.clear();
                   for (size_t at = word.find(step.replacement); at != std::string_view::npos;
                        at = word.find(step.replacement, at + step.replacement.size())) {
                     matches.push_back({at, at + step.replacement.size()});
                   }
                 });
    }
  }
};

}  // namespace

void PreTokenizer::apply(Words& words) const {
  for (const SplitStep& step : steps) std::visit(Apply{words}, step);
}

}  // namespace polar::text
