#include "base/result.h"

#include <cerrno>
#include <cstring>

namespace platter {

std::string_view CodeName(Code code) {
  switch (code) {
    case Code::kIo: return "io";
    case Code::kCorrupt: return "corrupt";
    case Code::kUnsupported: return "unsupported";
    case Code::kOutOfRange: return "out-of-range";
    case Code::kReadOnly: return "read-only";
    case Code::kNoSpace: return "no-space";
    case Code::kRefused: return "refused";
  }
  return "unknown";
}

Error::Error(Code code, int errno_value, std::string text)
    : body_(std::make_unique<Body>(Body{code, errno_value, std::move(text)})) {}

Error Error::WithPrefix(std::string_view prefix) && {
  std::string& text = body_->text;
  text.insert(0, ": ");
  text.insert(0, prefix);
  return std::move(*this);
}

namespace internal {

std::unexpected<Error> FailV(Code code, int errno_value, fmt::string_view format,
                             fmt::format_args args) {
  std::string text = fmt::vformat(format, args);
  if (errno_value != 0) {
    char buffer[128];
    text += ": ";
    text += strerror_r(errno_value, buffer, sizeof buffer);  // the GNU variant returns the text
    if (errno_value == ENOSPC || errno_value == EDQUOT) code = Code::kNoSpace;
    if (errno_value == EROFS) code = Code::kReadOnly;
  }
  return std::unexpected(Error(code, errno_value, std::move(text)));
}

}  // namespace internal
}  // namespace platter
