#include "text/jinja_budget.h"

#include "text/jinja_lexer.h"

namespace polar::text::jinja {
namespace {

thread_local Budget* current = nullptr;

}  // namespace

Budget::Budget() : outer_(current) {
  current = this;
}
Budget::~Budget() {
  current = outer_;
}

void Budget::steps(size_t count) {
  if (current == nullptr) return;
  if (count > kMaxSteps - current->steps_) {
    fail("more than " + std::to_string(kMaxSteps) + " steps");
  }
  current->steps_ += count;
}

void Budget::bytes(size_t count) {
  if (current == nullptr) return;
  if (count > kMaxBytes - current->bytes_) {
    fail("more than " + std::to_string(kMaxBytes >> 20) + " MiB of text and lists");
  }
  current->bytes_ += count;
}

void Budget::search(size_t text, size_t needle) {
  steps(1 + (text / 64 + 1) * (needle / 64 + 1));
}

}  // namespace polar::text::jinja
