#include "tools/json_facts.h"

#include <fmt/core.h>
#include <sys/time.h>

#include <algorithm>
#include <ctime>

#include "base/bytes.h"
#include "base/size.h"

namespace platter {
namespace {

using Json = nlohmann::ordered_json;

// JSON text must be UTF-8; names inside images need not be.
std::string JsonText(const std::string& text) { return Printable(text, 4096); }

Json FactValue(const Fact& fact) {
  return std::visit(
      [](const auto& value) -> Json {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, Facts>) {
          return FactsToJson(value);
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          Json list = Json::array();
          for (const std::string& item : value) list.push_back(JsonText(item));
          return list;
        } else if constexpr (std::is_same_v<T, std::string>) {
          return JsonText(value);
        } else {
          return value;
        }
      },
      fact.value);
}

const Reference* FindReference(const Info& info, Reference::Role role) {
  auto it = std::find_if(info.references.begin(), info.references.end(),
                         [&](const Reference& reference) { return reference.role == role; });
  return it == info.references.end() ? nullptr : &*it;
}

// Where the parent of the image at `path` is, as it would be looked for first.
std::string FullName(const Reference& parent, const std::string& path) {
  const std::string& name = parent.paths.empty() ? parent.name : parent.paths[0];
  const size_t slash = path.rfind('/');
  const bool whole = name.starts_with('/') || name.find(':') < name.find('/');  // "nbd://", "json:"
  return whole || slash == path.npos ? name : path.substr(0, slash + 1) + name;
}

Json SnapshotToJson(const SnapshotInfo& snapshot) {
  Json json = {
      {"id", JsonText(snapshot.id)},
      {"name", JsonText(snapshot.name)},
      {"vm-state-size", snapshot.vm_state_size},
      {"date-sec", snapshot.date_seconds},
      {"date-nsec", snapshot.date_nanoseconds},
      {"vm-clock-sec", snapshot.vm_clock_nanoseconds / 1'000'000'000},
      {"vm-clock-nsec", snapshot.vm_clock_nanoseconds % 1'000'000'000},
  };
  if (snapshot.icount) json["icount"] = *snapshot.icount;
  return json;
}

Json BitmapToJson(const BitmapInfo& bitmap) {
  Json flags = Json::array();
  if (bitmap.in_use) flags.push_back("in-use");
  if (bitmap.enabled) flags.push_back("auto");
  return {{"flags", flags}, {"name", JsonText(bitmap.name)}, {"granularity", bitmap.granularity}};
}

}  // namespace

std::string SnapshotsToText(const std::vector<SnapshotInfo>& snapshots) {
  std::string text = "Snapshot list:\n";
  constexpr std::string_view kColumns = "{:<10}{:<17}{:>8}{:>20}{:>13}{:>11}\n";
  text += fmt::format(fmt::runtime(kColumns), "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
  for (const SnapshotInfo& snapshot : snapshots) {
    std::time_t when = static_cast<std::time_t>(snapshot.date_seconds);
    std::tm local{};
    localtime_r(&when, &local);
    char date[32];
    std::strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", &local);
    uint64_t milliseconds = snapshot.vm_clock_nanoseconds / 1'000'000;
    std::string clock =
        fmt::format("{:02}:{:02}:{:02}.{:03}", milliseconds / 3'600'000, milliseconds / 60'000 % 60,
                    milliseconds / 1000 % 60, milliseconds % 1000);
    text += fmt::format(fmt::runtime(kColumns), Printable(snapshot.id), Printable(snapshot.name),
                        HumanSize(snapshot.vm_state_size), date, clock,
                        snapshot.icount ? std::to_string(*snapshot.icount) : "");
  }
  return text;
}

Json SnapshotsToJson(const std::vector<SnapshotInfo>& snapshots) {
  Json list = Json::array();
  for (const SnapshotInfo& snapshot : snapshots) list.push_back(SnapshotToJson(snapshot));
  return list;
}

Json FactsToJson(const Facts& facts) {
  // "[0]", "[1]" ... are the places of a list.
  const bool list = !facts.empty() && facts[0].name == "[0]";
  Json json = list ? Json::array() : Json::object();
  for (const Fact& fact : facts) {
    if (list) {
      json.push_back(FactValue(fact));
    } else {
      json[fact.name] = FactValue(fact);
    }
  }
  return json;
}

std::string FactsToText(const Facts& facts, unsigned indent) {
  std::string text;
  for (const Fact& fact : facts) {
    std::string name = fact.name;
    std::replace(name.begin(), name.end(), '-', ' ');
    text += fmt::format("{:{}}{}:", "", indent, name);
    if (auto* nested = std::get_if<Facts>(&fact.value)) {
      text += "\n" + FactsToText(*nested, indent + 4);
    } else if (auto* list = std::get_if<std::vector<std::string>>(&fact.value)) {
      for (const std::string& item : *list) text += " " + Printable(item);
      text += "\n";
    } else if (auto* flag = std::get_if<bool>(&fact.value)) {
      text += *flag ? " true\n" : " false\n";
    } else if (auto* number = std::get_if<uint64_t>(&fact.value)) {
      text += fmt::format(" {}\n", *number);
    } else {
      text += " " + Printable(std::get<std::string>(fact.value)) + "\n";
    }
  }
  return text;
}

Json InfoToJson(const Info& info, const std::string& path, uint64_t actual_size) {
  Json json = {{"virtual-size", info.size}, {"filename", JsonText(path)}};
  if (info.unit != 0) json["cluster-size"] = info.unit;
  json["format"] = info.format;
  json["actual-size"] = actual_size;
  if (info.encrypted) json["encrypted"] = true;
  if (!info.compression.empty()) json["compression"] = info.compression;
  if (const Reference* parent = FindReference(info, Reference::kParent)) {
    json["backing-filename"] = JsonText(parent->name);
    json["full-backing-filename"] = JsonText(FullName(*parent, path));
    if (!parent->format.empty()) json["backing-filename-format"] = JsonText(parent->format);
  }
  if (!info.snapshots.empty()) json["snapshots"] = SnapshotsToJson(info.snapshots);
  if (!info.facts.empty() || !info.bitmaps.empty()) {
    Json data = FactsToJson(info.facts);
    if (!info.bitmaps.empty()) {
      data["bitmaps"] = Json::array();
      for (const BitmapInfo& bitmap : info.bitmaps) data["bitmaps"].push_back(BitmapToJson(bitmap));
    }
    json["format-specific"] = {{"type", info.format}, {"data", data}};
  }
  if (!info.problems.empty()) {
    json["problems"] = Json::array();
    for (const std::string& problem : info.problems) json["problems"].push_back(JsonText(problem));
  }
  json["dirty-flag"] = info.dirty;
  json["references"] = Json::array();
  for (const Reference& reference : info.references) {
    json["references"].push_back(
        {{"role", reference.role == Reference::kParent ? "parent" : "data"},
         {"name", JsonText(reference.name)},
         {"format", JsonText(reference.format)}});
  }
  return json;
}

std::string InfoToText(const Info& info, const std::string& path, uint64_t actual_size) {
  std::string text = fmt::format(
      "image: {}\nfile format: {}\nvirtual size: {} ({} "
      "bytes)\ndisk size: {}\n",
      Printable(path, 4096), info.format, HumanSize(info.size), info.size, HumanSize(actual_size));
  if (info.encrypted) text += "encrypted: yes\n";
  if (info.unit != 0) text += fmt::format("cluster_size: {}\n", info.unit);
  if (info.dirty) text += "cleanly shut down: no\n";
  if (info.corrupt) text += "marked corrupt: yes\n";
  for (const Reference& reference : info.references) {
    bool parent = reference.role == Reference::kParent;
    const std::string full = parent ? FullName(reference, path) : reference.name;
    text += fmt::format(
        "{}: {}{}\n", parent ? "backing file" : "data file", Printable(reference.name, 4096),
        full == reference.name ? "" : fmt::format(" (actual path: {})", Printable(full, 4096)));
    if (parent && !reference.format.empty())
      text += fmt::format("backing file format: {}\n", Printable(reference.format));
  }
  if (!info.snapshots.empty()) text += SnapshotsToText(info.snapshots);
  if (!info.facts.empty()) text += "Format specific information:\n" + FactsToText(info.facts, 4);
  if (!info.bitmaps.empty()) {
    text += "    bitmaps:\n";
    for (const BitmapInfo& bitmap : info.bitmaps) {
      text += fmt::format("        {}: granularity {}{}{}\n", Printable(bitmap.name),
                          bitmap.granularity, bitmap.enabled ? ", auto" : "",
                          bitmap.in_use ? ", in use" : "");
    }
  }
  return text;
}

}  // namespace platter
