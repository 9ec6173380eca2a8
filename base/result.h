// Errors as values: Result<T>, Error, Fail(...) and TRY(...).
//
// Platter throws nothing. A function that can fail returns Result<T>; its caller either passes the
// error on with TRY, adding what it knows by WithPrefix, or handles it. An error's text grows from
// the inside out, so that the user reads one line that names image, structure, offset and reason:
//
//   qcow2 'a.img': L2 table 3: entry past the end of the file (offset 0x1f0000, file size 0x190000)
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <expected>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace platter {

// What went wrong, as far as a program may care. Kept to a handful: the text says the rest.
enum class Code : uint8_t {
  kIo,           // the operating system or a peer failed us; errno says how
  kCorrupt,      // bytes of an image contradict its format
  kUnsupported,  // a format, feature or operation that we do not handle, named in the text
  kOutOfRange,   // an argument lies outside the disk or outside what the format can express
  kReadOnly,     // a write to what was opened for reading
  kNoSpace,      // the store or the format is full
  kRefused,      // we could, but must not: a policy, a lock held by someone, an existing file
};

std::string_view CodeName(Code code);

// One pointer wide, so that Result<uint64_t> stays small. Move-only. Never empty unless moved from.
class [[nodiscard]] Error {
 public:
  Error(Code code, int errno_value, std::string text);

  Code code() const { return body_->code; }
  int errno_value() const { return body_->errno_value; }  // 0 where no system call failed
  const std::string& text() const { return body_->text; }

  // "prefix: text". Each layer on the way up says what it was doing.
  Error WithPrefix(std::string_view prefix) &&;

  // Errors are moved; the rare second reader (a shared failure flag) asks for a copy by name.
  Error Clone() const { return Error(code(), errno_value(), text()); }

 private:
  struct Body {
    Code code;
    int errno_value;
    std::string text;
  };
  std::unique_ptr<Body> body_;
};

// std::expected with [[nodiscard]], which libstdc++ 12's lacks.
template <class T = void>
class [[nodiscard]] Result : public std::expected<T, Error> {
 public:
  using std::expected<T, Error>::expected;

  // Adds context to a failure and leaves a success alone.
  Result WithPrefix(std::string_view prefix) && {
    if (this->has_value()) return std::move(*this);
    return std::unexpected(std::move(this->error()).WithPrefix(prefix));
  }
};

namespace internal {
std::unexpected<Error> FailV(Code code, int errno_value, fmt::string_view format,
                             fmt::format_args args);

template <class T>
T Take(Result<T>&& result) {
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}
template <class T>
T Take(std::expected<T, Error>&& result) {
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}
}  // namespace internal

// `return Fail(Code::kCorrupt, "L1 table: offset {:#x} is not aligned", offset);`
template <class... Args>
[[nodiscard]] std::unexpected<Error> Fail(Code code, fmt::format_string<Args...> format,
                                          Args&&... args) {
  return internal::FailV(code, 0, format, fmt::make_format_args(args...));
}

// As Fail, for a failed system call: appends ": " and the text of `errno_value`. ENOSPC and EDQUOT
// become kNoSpace, EROFS kReadOnly, everything else kIo.
template <class... Args>
[[nodiscard]] std::unexpected<Error> FailErrno(int errno_value, fmt::format_string<Args...> format,
                                               Args&&... args) {
  return internal::FailV(Code::kIo, errno_value, format, fmt::make_format_args(args...));
}

// The value of a Result, or returns its error from the enclosing function. A GNU statement
// expression: `auto size = TRY(store.Size());`
#define TRY(...)                                              \
  ({                                                          \
    auto try_result_ = (__VA_ARGS__);                         \
    if (!try_result_.has_value()) [[unlikely]]                \
      return std::unexpected(std::move(try_result_.error())); \
    ::platter::internal::Take(std::move(try_result_));        \
  })

// As TRY, adding context: TRY_AS("L1 table", ReadTable(...)).
#define TRY_AS(prefix, ...)                                                      \
  ({                                                                             \
    auto try_result_ = (__VA_ARGS__);                                            \
    if (!try_result_.has_value()) [[unlikely]]                                   \
      return std::unexpected(std::move(try_result_.error()).WithPrefix(prefix)); \
    ::platter::internal::Take(std::move(try_result_));                           \
  })

}  // namespace platter
