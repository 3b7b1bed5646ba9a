// Lines of a file of prompts: whatever they hold is a value or an error that names the line.

#include <cstdint>
#include <string_view>

#include "core/error.h"
#include "engine/prompt_line.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace polar;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto line = engine::parse_prompt_line(text, 7, {});
  const std::string id = engine::prompt_line_id(text, 7);
  if (line.ok()) {
    POLAR_CHECK(line->id == id && line->n >= 1);
    POLAR_CHECK(line->prompt.has_value() + line->tokens.has_value() + line->messages.has_value() ==
                1);
  } else {
    POLAR_CHECK(line.error().message.starts_with("line 7: "));
    POLAR_CHECK(line.error().message.find('\n') == std::string::npos);
  }
  return 0;
}
