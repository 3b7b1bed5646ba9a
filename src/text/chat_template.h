#pragma once
// Chat templates: from messages to a prompt. Renders the Jinja of published models as transformers
// does, i.e. as jinja2's ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
// extensions=[loopcontrols, generation]) with tojson, raise_exception and strftime_now.
//
// Left out, and an error that names it: inheritance and includes, recursive loops, * and ** in
// calls, integers beyond 64 bits, and the filters forceescape, filesizeformat, groupby, pprint,
// random, striptags, urlize, wordwrap, xmlattr. `escape` and `safe` give plain strings.

#include <nlohmann/json_fwd.hpp>

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "core/error.h"

namespace polar::text {

/// Immutable, cheap to copy, and safe for concurrent use.
class ChatTemplate {
 public:
  /// `where` stands for the file in errors. What is not UTF-8 in `source` becomes U+FFFD.
  static Result<ChatTemplate> parse(std::string_view source, std::string where);

  /// The prompt for `context`, an object with what the template may use: "messages", "tools",
  /// "add_generation_prompt", "bos_token", ... Keys keep their order only in an ordered_json, which
  /// matters where a template prints whole objects (tools). A template's own refusal
  /// (raise_exception), a failure and a template that needs too many steps, too much memory or too
  /// deep a recursion are errors. `now` is the time that strftime_now shows (default: the clock).
  Result<std::string> render(const nlohmann::ordered_json& context,
                             std::optional<std::time_t> now = std::nullopt) const;
  Result<std::string> render(const nlohmann::json& context,
                             std::optional<std::time_t> now = std::nullopt) const;

 private:
  struct Parsed;

  template <typename Json>
  Result<std::string> render_any(const Json& context, std::optional<std::time_t> now) const;

  std::shared_ptr<const Parsed> parsed_;
};

}  // namespace polar::text
