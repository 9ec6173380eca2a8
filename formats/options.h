// Options by name (-o name=value), as formats read them when they open and create.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "formats/format.h"
#include "io/layer.h"

namespace platter {

using OptionMap = std::map<std::string, std::string>;

// The value of option `name`, or nothing where it was not given. kUnsupported names option, value
// and what would be right.
std::optional<std::string_view> FindOption(const OptionMap& options, std::string_view name);
// Bytes: a decimal number, optionally with a fraction and one of the suffixes b k K M G T P E
// (powers of 1024; "iB" and "B" may follow). A fraction that is no whole number of bytes, a sign,
// and what does not fit 63 bits are refused.
Result<std::optional<uint64_t>> SizeOption(const OptionMap& options, std::string_view name);
Result<std::optional<uint64_t>> NumberOption(const OptionMap& options, std::string_view name);
Result<std::optional<bool>> BoolOption(const OptionMap& options, std::string_view name);  // on, off
// One of `choices`, as its index.
Result<std::optional<size_t>> ChoiceOption(const OptionMap& options, std::string_view name,
                                           std::initializer_list<std::string_view> choices);
// The option "preallocation", of those that the format offers (kOff is always offered).
Result<Preallocation> PreallocationOption(const OptionMap& options,
                                          std::initializer_list<Preallocation> offered);

// Refuses (kUnsupported) the first option whose name is not in `known`: `format` and the names
// there are stand in the message.
Result<> CheckOptionNames(std::string_view format, const OptionMap& options,
                          std::span<const OptionHelp> known);

}  // namespace platter
