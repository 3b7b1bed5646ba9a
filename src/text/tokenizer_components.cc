#include <algorithm>
#include <functional>

#include "text/tokenizer_json.h"
#include "text/utf8.h"

namespace polar::text {
namespace {

Result<std::string> read_type(const JsonView& json, int depth) {
  POLAR_RETURN_IF_ERROR(json.require_object());
  if (depth > kMaxNesting) {
    return json.error("nesting deeper than " + std::to_string(kMaxNesting), "a flatter sequence");
  }
  return json.at("type").string();
}

Status each_of(const JsonView& list, const std::function<Status(const JsonView&)>& read) {
  POLAR_RETURN_IF_ERROR(list.require_array());
  for (size_t i = 0; i < list.value().size(); ++i) POLAR_RETURN_IF_ERROR(read(list.at(i)));
  return Status();
}

Result<std::string> read_character(const JsonView& json, std::string_view fallback) {
  if (json.is_null()) return std::string(fallback);
  POLAR_ASSIGN(std::string text, json.string());
  if (count_code_points(text) != 1) return json.error("one character");
  return text;
}

Result<SplitBehavior> read_behavior(const JsonView& json) {
  POLAR_ASSIGN(const std::string name, json.string());
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return json.error("Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

Result<MetaspaceSplit::Prepend> read_prepend_scheme(const JsonView& json) {
  const JsonView scheme = json.at("prepend_scheme");
  if (scheme.is_null()) {  // older files say add_prefix_space
    POLAR_ASSIGN(const bool add, json.at("add_prefix_space").boolean(true));
    return add ? MetaspaceSplit::Prepend::kAlways : MetaspaceSplit::Prepend::kNever;
  }
  POLAR_ASSIGN(const std::string name, scheme.string());
  if (name == "always") return MetaspaceSplit::Prepend::kAlways;
  if (name == "first") return MetaspaceSplit::Prepend::kFirst;
  if (name == "never") return MetaspaceSplit::Prepend::kNever;
  return scheme.error("always, first or never");
}

Result<SplitStep> read_split(const JsonView& json) {
  POLAR_ASSIGN(const ReplaceText pattern, read_pattern(json.at("pattern")));
  POLAR_ASSIGN(const SplitBehavior behavior, read_behavior(json.at("behavior")));
  POLAR_ASSIGN(const bool invert, json.at("invert").boolean(false));
  const Regex regex = pattern.regex.empty() ? Regex::literal(pattern.literal) : pattern.regex[0];
  return SplitStep(RegexSplit{regex, behavior, invert});
}

Result<SplitStep> read_byte_level(const JsonView& json) {
  POLAR_ASSIGN(const bool prefix, json.at("add_prefix_space").boolean(true));
  POLAR_ASSIGN(const bool use_regex, json.at("use_regex").boolean(true));
  ByteLevelSplit step{prefix, {}};
  if (use_regex) {
    POLAR_ASSIGN(Regex regex, Regex::compile(kGpt2Pattern, json.where(), json.key()));
    step.regex.push_back(regex);
  }
  return SplitStep(std::move(step));
}

Result<SplitStep> read_metaspace_split(const JsonView& json) {
  POLAR_ASSIGN(std::string replacement, read_character(json.at("replacement"), "\xE2\x96\x81"));
  POLAR_ASSIGN(const MetaspaceSplit::Prepend prepend, read_prepend_scheme(json));
  POLAR_ASSIGN(const bool split, json.at("split").boolean(true));
  return SplitStep(MetaspaceSplit{std::move(replacement), prepend, split});
}

Result<SplitStep> read_digits(const JsonView& json) {
  POLAR_ASSIGN(const bool individual, json.at("individual_digits").boolean(false));
  return SplitStep(ClassSplit{CharacterClass::kNumeric,
                              individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous});
}

Result<SplitStep> read_punctuation(const JsonView& json) {
  SplitBehavior behavior = SplitBehavior::kIsolated;
  if (!json.at("behavior").is_null()) {
    POLAR_ASSIGN(behavior, read_behavior(json.at("behavior")));
  }
  return SplitStep(ClassSplit{CharacterClass::kPunctuation, behavior});
}

Result<SplitStep> read_whitespace(const JsonView& json) {
  POLAR_ASSIGN(Regex regex, Regex::compile(R"(\w+|[^\w\s]+)", json.where(), json.key()));
  return SplitStep(RegexSplit{regex, SplitBehavior::kRemoved, true});
}

// A stage behind Fuse or ByteLevel sees one long piece in parts, so that output can stream.
bool sees_parts(const Decoder& decoder) {
  for (const DecoderStep& step : decoder.steps) {
    if (std::holds_alternative<FuseDecoder>(step) ||
        std::holds_alternative<ByteLevelDecoder>(step)) {
      return true;
    }
  }
  return false;
}

Status read_replace_decoder(const JsonView& json, Decoder& decoder) {
  POLAR_ASSIGN(ReplaceText replace, read_pattern(json.at("pattern")));
  POLAR_ASSIGN(replace.content, json.at("content").string());
  if (sees_parts(decoder) && (!replace.regex.empty() || count_code_points(replace.literal) > 1)) {
    return json.at("pattern").error("a pattern behind Fuse",
                                    "one character, or Replace before Fuse");
  }
  decoder.steps.push_back(ReplaceDecoder{std::move(replace)});
  return Status();
}

Status read_strip_decoder(const JsonView& json, Decoder& decoder) {
  POLAR_ASSIGN(std::string content, read_character(json.at("content"), " "));
  POLAR_ASSIGN(const int64_t start, json.at("start").integer(0, 1 << 20));
  POLAR_ASSIGN(const int64_t stop, json.at("stop").integer(0, 1 << 20));
  decoder.steps.push_back(
      StripDecoder{std::move(content), static_cast<size_t>(start), static_cast<size_t>(stop)});
  return Status();
}

// The ids of one entry of a template's "special_tokens".
Status read_template_token(const JsonView& item, const JsonView& tokens,
                           std::vector<TokenId>& frame) {
  POLAR_ASSIGN(const std::string name, item.at("id").string());
  const JsonView ids = tokens.at(name).at("ids");
  POLAR_RETURN_IF_ERROR(ids.require_array());
  for (size_t i = 0; i < ids.value().size(); ++i) {
    POLAR_ASSIGN(const int64_t id, ids.at(i).integer(0, kMaxVocabulary - 1));
    frame.push_back(static_cast<TokenId>(id));
  }
  return Status();
}

Status read_template(const JsonView& json, std::vector<TokenId>& frame) {
  const JsonView single = json.at("single");
  std::vector<TokenId> outer;
  POLAR_RETURN_IF_ERROR(each_of(single, [&](const JsonView& item) -> Status {
    if (!item.at("Sequence").is_null()) {
      outer.insert(outer.end(), frame.begin(), frame.end());
      return Status();
    }
    if (item.at("SpecialToken").is_null()) return item.error("a Sequence or a SpecialToken");
    return read_template_token(item.at("SpecialToken"), json.at("special_tokens"), outer);
  }));
  const size_t texts = static_cast<size_t>(std::count(outer.begin(), outer.end(), kText));
  if (texts != 1 || outer.size() > 1024) {
    return single.error("the text " + std::to_string(texts) + " times among " +
                            std::to_string(outer.size()) + " items",
                        "it once, and at most 1024 items");
  }
  frame = std::move(outer);
  return Status();
}

// RobertaProcessing and BertProcessing: <cls> text <sep>.
Status read_cls_sep(const JsonView& json, std::vector<TokenId>& frame) {
  for (const char* name : {"cls", "sep"}) {
    const JsonView pair = json.at(name);
    POLAR_RETURN_IF_ERROR(pair.require_array());
    if (pair.value().size() != 2) return pair.error("a list of a token and its id");
    POLAR_ASSIGN(const int64_t id, pair.at(size_t{1}).integer(0, kMaxVocabulary - 1));
    frame.insert(name[0] == 'c' ? frame.begin() : frame.end(), static_cast<TokenId>(id));
  }
  return Status();
}

}  // namespace

Result<ReplaceText> read_pattern(const JsonView& json) {
  POLAR_RETURN_IF_ERROR(json.require_object());
  ReplaceText replace;
  if (!json.at("String").is_null()) {
    POLAR_ASSIGN(replace.literal, json.at("String").string());
    return replace;
  }
  const JsonView regex = json.at("Regex");
  POLAR_ASSIGN(const std::string pattern, regex.string());
  POLAR_ASSIGN(Regex compiled, Regex::compile(pattern, regex.where(), regex.key()));
  replace.regex.push_back(std::move(compiled));
  return replace;
}

Status read_normalizer(const JsonView& json, Normalizer& normalizer, int depth) {
  if (json.is_null()) return Status();
  POLAR_ASSIGN(const std::string type, read_type(json, depth));
  auto& steps = normalizer.steps;
  if (type == "Sequence") {
    return each_of(json.at("normalizers"), [&](const JsonView& item) {
      return read_normalizer(item, normalizer, depth + 1);
    });
  }
  if (type == "NFC") {
    steps.push_back(NormalForms{NormalForm::kNfc});
  } else if (type == "NFD") {
    steps.push_back(NormalForms{NormalForm::kNfd});
  } else if (type == "NFKC") {
    steps.push_back(NormalForms{NormalForm::kNfkc});
  } else if (type == "NFKD") {
    steps.push_back(NormalForms{NormalForm::kNfkd});
  } else if (type == "Lowercase") {
    steps.push_back(Lowercase{});
  } else if (type == "StripAccents") {
    steps.push_back(StripAccents{});
  } else if (type == "ByteLevel") {
    steps.push_back(ByteLevelCharacters{});
  } else if (type == "Strip") {
    POLAR_ASSIGN(const bool left, json.at("strip_left").boolean(true));
    POLAR_ASSIGN(const bool right, json.at("strip_right").boolean(true));
    steps.push_back(StripSpaces{left, right});
  } else if (type == "Prepend") {
    POLAR_ASSIGN(std::string text, json.at("prepend").string());
    steps.push_back(Prepend{std::move(text)});
  } else if (type == "Replace") {
    POLAR_ASSIGN(ReplaceText replace, read_pattern(json.at("pattern")));
    POLAR_ASSIGN(replace.content, json.at("content").string());
    steps.push_back(std::move(replace));
  } else {
    return json.at("type").error(
        "NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Prepend, Replace, ByteLevel or "
        "Sequence");
  }
  return Status();
}

Status read_pre_tokenizer(const JsonView& json, PreTokenizer& pre_tokenizer, int depth) {
  if (json.is_null()) return Status();
  POLAR_ASSIGN(const std::string type, read_type(json, depth));
  if (type == "Sequence") {
    return each_of(json.at("pretokenizers"), [&](const JsonView& item) {
      return read_pre_tokenizer(item, pre_tokenizer, depth + 1);
    });
  }
  using Reader = Result<SplitStep> (*)(const JsonView&);
  const std::pair<std::string_view, Reader> readers[] = {
      {"ByteLevel", read_byte_level},
      {"Split", read_split},
      {"Metaspace", read_metaspace_split},
      {"Digits", read_digits},
      {"Punctuation", read_punctuation},
      {"Whitespace", read_whitespace},
      {"WhitespaceSplit",
       [](const JsonView&) {
         return Result<SplitStep>(ClassSplit{CharacterClass::kWhitespace, SplitBehavior::kRemoved});
       }},
  };
  for (const auto& [name, read] : readers) {
    if (type == name) {
      POLAR_ASSIGN(SplitStep step, read(json));
      pre_tokenizer.steps.push_back(std::move(step));
      return Status();
    }
  }
  return json.at("type").error(
      "ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit or Sequence");
}

Status read_decoder(const JsonView& json, Decoder& decoder, int depth) {
  if (json.is_null()) return Status();
  POLAR_ASSIGN(const std::string type, read_type(json, depth));
  auto& steps = decoder.steps;
  if (type == "Sequence") {
    return each_of(json.at("decoders"),
                   [&](const JsonView& item) { return read_decoder(item, decoder, depth + 1); });
  }
  if (type == "Replace") return read_replace_decoder(json, decoder);
  if (type == "Strip") return read_strip_decoder(json, decoder);
  if (type == "ByteLevel") {
    steps.push_back(ByteLevelDecoder{});
  } else if (type == "ByteFallback") {
    steps.push_back(ByteFallbackDecoder{});
  } else if (type == "Fuse") {
    steps.push_back(FuseDecoder{});
  } else if (type == "Metaspace") {
    POLAR_ASSIGN(std::string replacement, read_character(json.at("replacement"), "\xE2\x96\x81"));
    POLAR_ASSIGN(const MetaspaceSplit::Prepend prepend, read_prepend_scheme(json));
    steps.push_back(
        MetaspaceDecoder{std::move(replacement), prepend != MetaspaceSplit::Prepend::kNever});
  } else {
    return json.at("type").error(
        "ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace or Sequence");
  }
  return Status();
}

Status read_post_processor(const JsonView& json, std::vector<TokenId>& frame, int depth) {
  if (json.is_null()) return Status();
  POLAR_ASSIGN(const std::string type, read_type(json, depth));
  if (type == "Sequence") {
    return each_of(json.at("processors"), [&](const JsonView& item) {
      return read_post_processor(item, frame, depth + 1);
    });
  }
  if (type == "ByteLevel") return Status();  // it only moves offsets
  if (type == "TemplateProcessing") return read_template(json, frame);
  if (type == "RobertaProcessing" || type == "BertProcessing") return read_cls_sep(json, frame);
  return json.at("type").error(
      "TemplateProcessing, ByteLevel, RobertaProcessing, BertProcessing or Sequence");
}

}  // namespace polar::text
