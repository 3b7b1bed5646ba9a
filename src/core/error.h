#pragma once
// Two kinds of failure, two ways to say it (docs/architecture.md, "Errors"):
// - bad input from outside (files, flags, requests) is a value: Status or Result<T>, with one
// sentence for the user;
// - a broken invariant inside is a POLAR_CHECK, which prints file and line and aborts.

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace polar {

/// What went wrong, as one sentence without a trailing newline: "<file>: <key>: found ..., expected
/// ...".
struct Error {
  std::string message;
};

/// "<where>: <key>: found <found>, expected <expected>": the form of every complaint about a file
/// or a flag.
Error bad_input(std::string_view where, std::string_view key, std::string_view found,
                std::string_view expected);

/// Success, or an Error.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};

/// A T, or an Error.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  const Error& error() const { return std::get<1>(state_); }
  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T&& value() && { return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::variant<T, Error> state_;
};

}  // namespace polar

/// Returns the Error of a Status or Result expression from the enclosing function.
#define POLAR_RETURN_IF_ERROR(expression)                         \
  do {                                                            \
    if (auto polar_status_ = (expression); !polar_status_.ok()) { \
      return polar_status_.error();                               \
    }                                                             \
  } while (false)

#define POLAR_CONCAT_INNER_(a, b) a##b
#define POLAR_CONCAT_(a, b) POLAR_CONCAT_INNER_(a, b)
#define POLAR_ASSIGN_INNER_(result, declaration, expression) \
  auto result = (expression);                                \
  if (!result.ok()) return result.error();                   \
  declaration = std::move(result).value()

/// POLAR_ASSIGN(auto file, open(path)): declares `file` from a Result, or returns its Error.
#define POLAR_ASSIGN(declaration, expression) \
  POLAR_ASSIGN_INNER_(POLAR_CONCAT_(polar_result_, __LINE__), declaration, expression)

/// Aborts with file and line when an invariant of Polar itself is broken. Never for input from
/// outside.
#define POLAR_CHECK(condition)                                                                  \
  do {                                                                                          \
    if (!(condition)) {                                                                         \
      std::fprintf(stderr, "polar: %s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                             \
    }                                                                                           \
  } while (false)
