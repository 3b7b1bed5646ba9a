// Bodies of requests: whatever they hold is a value or an error in OpenAI's shape, never a crash.

#include <cstdint>
#include <string_view>

#include "core/error.h"
#include "serve/api_request.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace polar::serve;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const auto check = [](const auto& result) {
    const auto* error = std::get_if<ApiError>(&result);
    if (error == nullptr) return;
    POLAR_CHECK(error->status >= 400 && error->status < 500);
    POLAR_CHECK(error->json().starts_with("{\"error\":"));
  };
  check(parse_completion(body, false, {}));
  check(parse_completion(body, true, {}));
  check(parse_tokenize(body));
  check(parse_detokenize(body));
  return 0;
}
