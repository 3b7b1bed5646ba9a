#include "text/regex.h"

#include <pcre2.h>

#include <cctype>
#include <cstdio>
#include <optional>

#include "text/unicode.h"

namespace polar::text {
namespace {

// Backtracking steps of one match. Published patterns need a few per character; what needs more
// than this is a pattern built to hang.
constexpr uint32_t kMatchLimit = 2'000'000;
constexpr size_t kJitStackStart = 32 * 1024, kJitStackMax = 8 * 1024 * 1024;
constexpr size_t kMaxPattern = 64 * 1024;

struct MatchState {
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* stack = nullptr;

  MatchState() {
    data = pcre2_match_data_create(1, nullptr);  // only where the whole match is
    context = pcre2_match_context_create(nullptr);
    stack = pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr);
    POLAR_CHECK(data != nullptr && context != nullptr && stack != nullptr);
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
  ~MatchState() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

constexpr const char* kSpaces =
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{"
    "205F}"
    "\\x{3000}";
constexpr const char* kNoSpaces =
    "\\x{0}-\\x{8}\\x{E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}"
    "\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{"
    "10FFFF}";

// Rewrites a pattern from Oniguruma's syntax and Unicode 16 into PCRE2's syntax and tables:
// - \s is White_Space (PCRE2 adds U+180E); \d, \w, \p{..} get the characters that are newer than
//   Unicode 14; \h is a hexadecimal digit.
// - What means something else to PCRE2 and cannot be rewritten is an error: POSIX brackets, `&&` in
//   a class, (?m), and negations inside a class of what has newer characters (\W, \D).
class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  /// The pattern for PCRE2; on failure `problem` says what is not supported.
  std::optional<std::string> run(std::string& problem) {
    while (at_ < pattern_.size() && problem_.empty()) step();
    problem = problem_;
    if (!problem_.empty()) return std::nullopt;
    return out_;
  }

 private:
  void step() {
    const char c = pattern_[at_];
    if (c == '\\' && at_ + 1 < pattern_.size()) {
      escape();
    } else if (depth_ > 0) {
      in_class(c);
    } else {
      if (c == '[') open_class();
      if (pattern_.substr(at_).starts_with("(?")) check_flags();
      if (c != '[') copy(1);
    }
  }

  void copy(size_t count) {
    out_ += pattern_.substr(at_, count);
    at_ += count;
  }

  void open_class() {
    ++depth_;
    copy(1);
    if (at_ < pattern_.size() && pattern_[at_] == '^') copy(1);
    if (at_ < pattern_.size() && pattern_[at_] == ']') copy(1);
  }

  void in_class(char c) {
    if (c == '[') {
      problem_ = "no class inside a class";
    } else if (pattern_.substr(at_).starts_with("&&")) {
      problem_ = "no && in a class";
    } else {
      if (c == ']') --depth_;
      copy(1);
    }
  }

  void check_flags() {
    for (size_t i = at_ + 2;
         i < pattern_.size() &&
         (std::isalpha(static_cast<unsigned char>(pattern_[i])) || pattern_[i] == '-');
         ++i) {
      if (pattern_[i] == 'm') problem_ = "no flag m";
    }
  }

  // `inside` is what stands between the brackets of a class that means the same.
  void put_class(bool negated, const std::string& inside) {
    if (depth_ == 0) {
      out_ += (negated ? "[^" : "[") + inside + "]";
    } else if (negated) {
      problem_ = "no negated property inside a class";
    } else {
      out_ += inside;
    }
  }

  void escape() {
    const char kind = pattern_[at_ + 1];
    switch (kind) {
      case 's':
      case 'S':
        at_ += 2;
        put_class(false, kind == 's' ? kSpaces : kNoSpaces);
        break;
      case 'h':
      case 'H':
        at_ += 2;
        put_class(kind == 'H', "0-9A-Fa-f");
        break;
      case 'd':
      case 'D':
        at_ += 2;
        put_class(kind == 'D', "\\p{Nd}" + newer_characters("Nd"));
        break;
      case 'w':
      case 'W':
        at_ += 2;
        put_class(kind == 'W', "\\p{L}\\p{M}\\p{Nd}\\p{Pc}" + other_word_characters());
        break;
      case 'p':
      case 'P':
        property(kind == 'P');
        break;
      default:
        copy(2);
    }
  }

  void property(bool negated) {
    const size_t close = pattern_.find('}', at_);
    if (at_ + 2 >= pattern_.size() || pattern_[at_ + 2] != '{' || close == std::string_view::npos) {
      copy(2);
      return;
    }
    std::string name(pattern_.substr(at_ + 3, close - at_ - 3));
    if (name.starts_with('^')) {
      negated = !negated;
      name.erase(0, 1);
    }
    const std::string newer = newer_characters(name);
    if (name == "Han") name = "sc:Han";  // PCRE2 means the script's extensions otherwise
    if (newer.empty() || (negated && depth_ > 0)) {
      // Inside a class a negation cannot lose the newer characters: it keeps counting them.
      out_ += (negated ? "\\P{" : "\\p{") + name + "}";
    } else {
      put_class(negated, "\\p{" + name + "}" + newer);
    }
    at_ = close + 1;
  }

  std::string_view pattern_;
  size_t at_ = 0;
  int depth_ = 0;
  std::string out_, problem_;
};

}  // namespace

struct Regex::Code {
  pcre2_code* compiled = nullptr;

  Code() = default;
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(compiled); }
};

Result<Regex> Regex::compile(std::string_view pattern, std::string_view where,
                             std::string_view key) {
  const auto shown = [&] { return "\"" + std::string(pattern.substr(0, 200)) + "\""; };
  if (pattern.size() > kMaxPattern) {
    return bad_input(where, key, std::to_string(pattern.size()) + " bytes",
                     "a regular expression of at most " + std::to_string(kMaxPattern) + " bytes");
  }
  std::string problem;
  const auto translated = Translator(pattern).run(problem);
  if (!translated) return bad_input(where, key, shown(), "a regular expression with " + problem);
  auto code = std::make_shared<Code>();
  int error = 0;
  PCRE2_SIZE offset = 0;
  code->compiled = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(translated->data()), translated->size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code->compiled == nullptr) {
    PCRE2_UCHAR text[160];
    pcre2_get_error_message(error, text, sizeof(text));
    return bad_input(where, key, shown(),
                     "a regular expression (" + std::string(reinterpret_cast<char*>(text)) +
                         " at byte " + std::to_string(offset) + ")");
  }
  // Without JIT (a platform PCRE2 does not compile for) the interpreter does the same, slower.
  pcre2_jit_compile(code->compiled, PCRE2_JIT_COMPLETE);
  Regex regex;
  regex.code_ = std::move(code);
  return regex;
}

Regex Regex::literal(std::string_view text) {
  std::string pattern;
  for (char c : text) {
    if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c))) {
      char escaped[8];
      std::snprintf(escaped, sizeof(escaped), "\\x{%x}", static_cast<unsigned>(c));
      pattern += escaped;
    } else {
      pattern += c;
    }
  }
  auto regex = compile(pattern, "literal", "pattern");
  POLAR_CHECK(regex.ok());
  return *regex;
}

void Regex::find_all(std::string_view text, std::vector<Span>& matches) const {
  matches.clear();
  thread_local const MatchState state;  // serves every pattern
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const PCRE2_SIZE* found = pcre2_get_ovector_pointer(state.data);
  size_t at = 0;
  while (at <= text.size()) {
    const int count = pcre2_match(code_->compiled, subject, text.size(), at, PCRE2_NO_UTF_CHECK,
                                  state.data, state.context);
    if (count < 0) break;
    const size_t begin = found[0], end = found[1];
    if (begin > end || begin < at) break;  // \K in a look-around can say such things
    matches.push_back({begin, end});
    at = end;
    if (begin == end) {  // an empty match: look further one character on
      ++at;
      while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
    }
  }
}

}  // namespace polar::text
