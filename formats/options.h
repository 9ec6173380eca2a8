// Options by name (-o name=value), as formats read them when they open and create.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "formats/format.h"
#include "io/layer.h"

namespace platter {

using OptionMap = std::map<std::string, std::string>;

// The value of option `name`, or nothing where it was not given. An error names option,
// value and what would be right: kUnsupported, or kOutOfRange for what is no size.
std::optional<std::string_view> FindOption(const OptionMap& options, std::string_view name);
// Bytes, as ParseSize of base/size.h reads them.
Result<std::optional<uint64_t>> SizeOption(const OptionMap& options, std::string_view name);
Result<std::optional<uint64_t>> NumberOption(const OptionMap& options, std::string_view name);
Result<std::optional<bool>> BoolOption(const OptionMap& options, std::string_view name);  // on, off
// One of `choices`, as its index.
Result<std::optional<size_t>> ChoiceOption(const OptionMap& options, std::string_view name,
                                           std::initializer_list<std::string_view> choices);
// The option "preallocation", of those that the format offers (kOff is always offered).
Result<Preallocation> PreallocationOption(const OptionMap& options,
                                          std::initializer_list<Preallocation> offered);

// Options by which a new image of any format takes what CreateOptions has members for: size,
// backing_file and backing_fmt, qemu-img's older way to say what SIZE, -b and -F say. This moves
// them there; whoever takes options from a user calls it, so that formats need not know them.
// kUnsupported for a parent named twice, or a format without one.
Result<> TakeCommonOptions(CreateOptions& create);
// What `-o help` lists for a format: its own and those, by name.
std::vector<OptionHelp> ListCreateOptions(const Format& format);

// Refuses (kUnsupported) the first option whose name is not in `known`: `format` and the names
// there are stand in the message.
Result<> CheckOptionNames(std::string_view format, const OptionMap& options,
                          std::span<const OptionHelp> known);

}  // namespace platter
