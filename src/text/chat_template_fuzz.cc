// Any bytes as a chat template: it is refused, fails or renders, in bounded time and memory.

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "text/chat_template.h"
#include "text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const nlohmann::ordered_json context = nlohmann::ordered_json::parse(R"({
    "messages": [{"role": "system", "content": " Be terse.\n"}, {"role": "user", "content": "Hi"},
                 {"role": "assistant", "content": "", "tool_calls": [{"function":
                  {"name": "f", "arguments": {"x": 1.5, "y": [null, true]}}}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "add_generation_prompt": true, "bos_token": "<s>", "n": -3, "l": [3, 1, 2], "s": "a é b"})");
  const auto check = [](const std::string& message) {
    POLAR_CHECK(!message.empty() && message.size() < 2000);
    POLAR_CHECK(message.find('\n') == std::string::npos);
  };
  const auto chat = polar::text::ChatTemplate::parse(
      std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
  if (!chat.ok()) {
    check(chat.error().message);
    return 0;
  }
  const auto text = chat->render(context, 0);
  if (text.ok()) {
    POLAR_CHECK(polar::text::is_valid_utf8(*text));
  } else {
    check(text.error().message);
  }
  return 0;
}
