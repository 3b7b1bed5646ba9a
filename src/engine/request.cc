#include "engine/request.h"

namespace polar::engine {

const char* finish_reason_name(FinishReason reason) {
  static constexpr const char* kNames[] = {"stop", "length", "cancelled", "error"};
  return kNames[static_cast<int>(reason)];
}

}  // namespace polar::engine
