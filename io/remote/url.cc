#include "io/remote/url.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "base/bytes.h"

namespace platter {

namespace {

constexpr std::string_view kAuthorityMark = "://";

bool IsAlpha(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

int HexValue(char c) {
  if (IsDigit(c)) return c - '0';
  char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

Result<std::string> Decode(std::string_view text, std::string_view part) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      int high = i + 2 < text.size() ? HexValue(text[i + 1]) : -1;
      int low = i + 2 < text.size() ? HexValue(text[i + 2]) : -1;
      if (high < 0 || low < 0) {
        return Fail(Code::kOutOfRange, "a '%' in the {} is not followed by two hexadecimal digits",
                    part);
      }
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (c == '\0') return Fail(Code::kOutOfRange, "the {} holds a NUL byte", part);
    out += c;
  }
  return out;
}

// What stands for itself in a path (RFC 3986, section 3.3).
bool StandsForItself(char c) {
  return IsAlpha(c) || IsDigit(c) ||
         std::string_view("-._~!$&'()*+,;=:@/").find(c) != std::string_view::npos;
}

std::string EncodePath(std::string_view path) {
  std::string out;
  for (char c : path) {
    if (StandsForItself(c)) {
      out += c;
    } else {
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return out;
}

// Cuts `rest` at the first of `marks`; what was before it. The mark stays.
std::string_view TakeUntil(std::string_view& rest, std::string_view marks) {
  size_t end = std::min(rest.find_first_of(marks), rest.size());
  std::string_view taken = rest.substr(0, end);
  rest.remove_prefix(end);
  return taken;
}

Result<> ParseUser(std::string_view text, Url& url) {
  size_t colon = text.find(':');
  url.user = TRY(Decode(text.substr(0, colon), "user name"));
  if (colon != text.npos) url.password = TRY(Decode(text.substr(colon + 1), "password"));
  return {};
}

Result<> ParsePort(std::string_view text, Url& url) {
  if (text.empty()) return {};
  if (text[0] != ':') return Fail(Code::kOutOfRange, "'{}' behind the host", Printable(text));
  text.remove_prefix(1);
  if (text.empty()) return {};
  uint16_t port = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size() || port == 0) {
    return Fail(Code::kOutOfRange, "'{}' is no port", Printable(text));
  }
  url.port = port;
  return {};
}

Result<> ParseAuthority(std::string_view text, Url& url) {
  if (size_t at = text.rfind('@'); at != text.npos) {
    TRY(ParseUser(text.substr(0, at), url));
    text.remove_prefix(at + 1);
  }
  if (text.starts_with('[')) {
    size_t end = text.find(']');
    if (end == text.npos) return Fail(Code::kOutOfRange, "the host's bracket is not closed");
    url.host = TRY(Decode(text.substr(1, end - 1), "host"));
    return ParsePort(text.substr(end + 1), url);
  }
  std::string_view host = TakeUntil(text, ":");
  url.host = TRY(Decode(host, "host"));
  return ParsePort(text, url);
}

Result<> ParseQuery(std::string_view text, Url& url) {
  while (!text.empty()) {
    std::string_view pair = TakeUntil(text, "&;");
    if (!text.empty()) text.remove_prefix(1);
    if (pair.empty()) continue;
    size_t equals = pair.find('=');
    std::string name = TRY(Decode(pair.substr(0, equals), "query"));
    std::string value;
    if (equals != pair.npos) value = TRY(Decode(pair.substr(equals + 1), "query"));
    url.query[std::move(name)] = std::move(value);
  }
  return {};
}

Result<Url> Parse(std::string_view text) {
  Url url;
  url.scheme = SchemeOf(text);
  if (url.scheme.empty()) return Fail(Code::kOutOfRange, "it has not the form SCHEME://...");
  text.remove_prefix(url.scheme.size() + kAuthorityMark.size());
  TRY(ParseAuthority(TakeUntil(text, "/?#"), url));
  url.path = TRY(Decode(TakeUntil(text, "?#"), "path"));
  if (text.starts_with('?')) {
    text.remove_prefix(1);
    TRY(ParseQuery(TakeUntil(text, "#"), url));
  }
  return url;
}

}  // namespace

std::string SchemeOf(std::string_view name) {
  size_t end = name.find(kAuthorityMark);
  if (end == name.npos || end == 0 || !IsAlpha(name[0])) return {};
  std::string scheme(name.substr(0, end));
  for (char& c : scheme) {
    if (!IsAlpha(c) && !IsDigit(c) && c != '+' && c != '-' && c != '.') return {};
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return scheme;
}

Result<Url> ParseUrl(std::string_view text) {
  return Parse(text).WithPrefix(fmt::format("URL '{}'", DescribeUrl(text)));
}

std::string DescribeUrl(std::string_view url) {
  std::string scheme = SchemeOf(url);
  if (scheme.empty()) return Printable(url, 4096);
  std::string_view rest = url.substr(scheme.size() + kAuthorityMark.size());
  std::string_view authority = TakeUntil(rest, "/?#");
  // The query of a web server's URL may be what lets one in.
  std::string_view path = TakeUntil(rest, scheme.starts_with("http") ? "?#" : "");
  std::string user;
  if (size_t at = authority.rfind('@'); at != authority.npos) {
    user = std::string(authority.substr(0, std::min(at, authority.find(':')))) + "@";
    authority.remove_prefix(at + 1);
  }
  return Printable(fmt::format("{}{}{}{}{}", scheme, kAuthorityMark, user, authority, path), 4096);
}

Result<std::string> UrlBeside(std::string_view url, std::string_view name) {
  if (name.starts_with('/')) {
    return Fail(Code::kRefused, "a path from the root leads out of the image's folder");
  }
  for (std::string_view rest = name; !rest.empty();) {
    if (TakeUntil(rest, "/") == "..") {
      return Fail(Code::kRefused, "'..' leads out of the image's folder");
    }
    if (!rest.empty()) rest.remove_prefix(1);
  }
  std::string_view place = url.substr(0, std::min(url.find_first_of("?#"), url.size()));
  size_t authority = place.find(kAuthorityMark) + kAuthorityMark.size();
  size_t slash = place.rfind('/');
  if (slash == place.npos || slash < authority) {
    return Fail(Code::kRefused, "the image's URL has no path");
  }
  return std::string(place.substr(0, slash + 1)) + EncodePath(name);
}

}  // namespace platter
