#include "formats/vdi/vdi_survey.h"

#include <algorithm>
#include <utility>

#include "formats/vdi/vdi_layer.h"

namespace platter::vdi {
namespace {

using Finding = CheckReport::Finding;

constexpr uint64_t kMostBlocks = uint64_t{1} << 30;  // host blocks: 128 MiB of memory
constexpr size_t kMostNamed = 1000;                  // host blocks whose owners are looked up
constexpr size_t kMostOwners = 4;                    // of one host block that are named

class Surveyor {
 public:
  explicit Surveyor(Store& file) : file_(file) {}

  Result<Survey> Run() {
    survey_.header = TRY(ReadHeader(file_));
    survey_.file_size = TRY(file_.Size());
    survey_.report.image_end = survey_.header.data_offset;
    survey_.report.total_units = BlocksFor(header().size, header().block_size);
    if (header().differencing() && IsNil(header().parent_id)) {
      Add(Finding::kCorruption, "header: the image is differencing, but names no parent");
    }
    const uint64_t blocks = BlocksThere();
    if (blocks > kMostBlocks) {
      Add(Finding::kError, fmt::format("{} host blocks are too many to check", blocks));
      return std::move(survey_);
    }
    BlockSet used(blocks);
    TRY(ReadMap(file_, header(), [&](uint32_t first, std::span<const le32> entries) -> Result<> {
      for (size_t i = 0; i < entries.size(); ++i) {
        LookAt(static_cast<uint32_t>(first + i), entries[i], used);
      }
      return {};
    }));
    TRY(NameOwners());
    FindLeaks(used);
    return std::move(survey_);
  }

 private:
  const Header& header() const { return survey_.header; }
  void Add(Finding::Kind kind, std::string text) { survey_.report.Add(kind, std::move(text)); }

  // Host blocks that begin inside the file.
  uint64_t BlocksThere() const {
    uint64_t size = survey_.file_size, from = header().data_offset;
    return size <= from ? 0
                        : std::min<uint64_t>(DivideUp(size - from, header().stride()), kDiscarded);
  }

  void LookAt(uint32_t block, uint32_t entry, BlockSet& used) {
    if (!IsHostBlock(entry)) return;
    const Range host = header().HostBlock(entry);
    if (host.offset >= survey_.file_size || entry >= used.size()) {
      ++survey_.past_end;
      Add(Finding::kCorruption,
          fmt::format("block map: entry {} names host block {} at {:#x}, past the end of the file "
                      "({:#x})",
                      block, entry, host.offset, survey_.file_size));
      return;
    }
    CheckReport& report = survey_.report;
    ++report.allocated_units;
    if (report.allocated_units > 1 && entry != last_ + 1) ++report.fragmented_units;
    last_ = entry;
    report.image_end = std::max(report.image_end, host.end());
    survey_.end = std::max(survey_.end, entry + 1);
    if (!used.Insert(entry)) {
      ++survey_.shared;
      if (shared_.size() < kMostNamed) shared_.try_emplace(entry);
    } else if (host.end() > survey_.file_size) {
      survey_.cut = true;
      Add(Finding::kCorruption,
          fmt::format("block map: entry {} names host block {}, of which the file holds {} of {} "
                      "bytes (it ends at {:#x})",
                      block, entry, survey_.file_size - host.offset, host.length,
                      survey_.file_size));
    }
  }

  // A second look at the map: who names the host blocks that more than one names.
  Result<> NameOwners() {
    if (shared_.empty()) return {};
    TRY(ReadMap(file_, header(), [&](uint32_t first, std::span<const le32> entries) -> Result<> {
      for (size_t i = 0; i < entries.size(); ++i) {
        auto found = shared_.find(entries[i]);
        if (found == shared_.end()) continue;
        ++found->second.count;
        if (found->second.first.size() < kMostOwners) {
          found->second.first.push_back(static_cast<uint32_t>(first + i));
        }
      }
      return {};
    }));
    const uint64_t before = survey_.report.corruptions;
    for (const auto& [host, owners] : shared_) {
      Add(Finding::kCorruption,
          fmt::format("host block {} at {:#x} is named by block map entries {}", host,
                      header().HostBlock(host).offset, Describe(owners)));
    }
    // One text for each host block; each name too many is a corruption.
    survey_.report.corruptions = before + survey_.shared;
    return {};
  }

  struct Owners {
    uint64_t count = 0;
    std::vector<uint32_t> first;
  };

  static std::string Describe(const Owners& owners) {
    const uint64_t more = owners.count - owners.first.size();
    std::string text;
    for (size_t i = 0; i < owners.first.size(); ++i) {
      bool last = more == 0 && i + 1 == owners.first.size();
      text += fmt::format("{}{}", i == 0 ? "" : last ? " and " : ", ", owners.first[i]);
    }
    return more == 0 ? text : fmt::format("{} and {} more", text, more);
  }

  void FindLeaks(const BlockSet& used) {
    used.EachGap(survey_.end, [&](uint32_t first, uint32_t count) {
      survey_.holes.push_back({first, count});
      Add(Finding::kLeak, count == 1 ? fmt::format("host block {} is used by nothing", first)
                                     : fmt::format("host blocks {} to {} are used by nothing",
                                                   first, first + count - 1));
      survey_.report.leaks += count - 1;
      return survey_.holes.size() < kMostNamed * kMostNamed;
    });
    if (header().allocated < survey_.end) {
      Add(Finding::kCorruption,
          fmt::format("header: {} host blocks are counted, but host block {} is in use: another "
                      "program would overwrite it",
                      header().allocated, survey_.end - 1));
    } else if (header().allocated > survey_.end) {
      Add(Finding::kLeak, fmt::format("header: {} host blocks are counted, but none from {} on is "
                                      "in use",
                                      header().allocated, survey_.end));
    }
  }

  Store& file_;
  Survey survey_;
  uint32_t last_ = 0;
  std::map<uint32_t, Owners> shared_;
};

}  // namespace

Result<Survey> SurveyImage(Store& file) { return Surveyor(file).Run(); }

}  // namespace platter::vdi
