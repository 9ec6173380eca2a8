// Info as JSON and as text, with qemu-img's names.
#pragma once

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

#include "io/info.h"

namespace platter {

// Facts as a JSON object; names as they are.
nlohmann::ordered_json FactsToJson(const Facts& facts);

// Facts as indented "name: value" lines, dashes in names shown as spaces.
std::string FactsToText(const Facts& facts, unsigned indent);

// Internal snapshots, as `info` and `snapshot -l` list them.
nlohmann::ordered_json SnapshotsToJson(const std::vector<SnapshotInfo>& snapshots);
std::string SnapshotsToText(const std::vector<SnapshotInfo>& snapshots);

// One image of a chain. `path` as opened; `actual_size`: bytes of the file that
// are allocated.
nlohmann::ordered_json InfoToJson(const Info& info, const std::string& path, uint64_t actual_size);
std::string InfoToText(const Info& info, const std::string& path, uint64_t actual_size);

}  // namespace platter
