// Names of what is on another machine: "https://user@host:8080/folder/disk.qcow2?query".
//
// Source: RFC 3986 (Uniform Resource Identifier). Only names with an authority ("//" after the
// scheme) count; everything else is the name of a file.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace platter {

// Parts are decoded (%41 is A) unless they say otherwise.
struct Url {
  std::string scheme;  // lower case: "https", "nbd+unix"
  std::optional<std::string> user, password;
  std::string host;  // of an IPv6 address without its brackets
  std::optional<uint16_t> port;
  std::string path;                          // from its first slash on; "" where there is none
  std::map<std::string, std::string> query;  // NAME=VALUE&...
};

// kOutOfRange, saying what is wrong. Parts that a NUL byte was hidden in are refused.
Result<Url> ParseUrl(std::string_view text);

// "https" of "HTTPS://...": lower case, and "" where `name` has not the form of a URL.
std::string SchemeOf(std::string_view name);

// Printable, for messages: without a password, and of a web server's without the query, which may
// hold a token.
std::string DescribeUrl(std::string_view url);

// The URL of `name` (a path, "a/b.img") in the folder in which `url` is, without query and
// fragment. kRefused for a name that would lead out of that folder.
Result<std::string> UrlBeside(std::string_view url, std::string_view name);

}  // namespace platter
