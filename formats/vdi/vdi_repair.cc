// Repair, in an order in which each step leaves an image that is no worse:
//
//   the header counts what is in use, so that nobody overwrites it
//   a file that was cut inside a block gets the missing bytes, as zeros
//   entries that name nothing in the file name nothing at all: their data is not there
//   of entries that share a host block all but the first get copies
//   holes are filled from the end, and the file is cut
#include <algorithm>
#include <utility>

#include "formats/vdi/vdi_survey.h"

namespace platter::vdi {
namespace {

// More names than these for blocks that are taken were not made by a mishap, and each is a copy.
constexpr uint64_t kMostCopies = 64 * 1024;

class Repairer {
 public:
  Repairer(Store& file, const Survey& survey)
      : file_(file), survey_(survey), header_(survey.header), end_(survey.end) {}

  Result<> Run(CheckOptions::Repair repair) {
    if (repair == CheckOptions::kAll) TRY(MendCorruptions());
    const bool sound = mended_ || (survey_.past_end + survey_.shared == 0 && !survey_.cut);
    if (sound && !survey_.holes.empty()) TRY(FillHoles());
    if (header_.allocated > end_) {
      TRY(Count(end_));
      if (!file_.caps().block_device && sound) TRY(Cut());
    }
    return file_.Sync();
  }

 private:
  Result<> Count(uint32_t allocated) {
    header_.allocated = allocated;
    TRY_AS("header", file_.Write(0, ConstBytes(BuildHeader(header_))));
    return file_.Sync();
  }

  Result<> MendCorruptions() {
    if (survey_.shared > kMostCopies) {
      return Fail(Code::kUnsupported, "{} entries of the block map name blocks that others name",
                  survey_.shared);
    }
    const auto end = uint64_t{end_} + survey_.shared;
    if (end >= kDiscarded) return Fail(Code::kNoSpace, "VDI cannot name more host blocks");
    if (header_.allocated < end) TRY(Count(static_cast<uint32_t>(end)));
    if (survey_.cut || survey_.shared > 0) TRY(Cover(end));
    std::vector<std::pair<uint32_t, uint32_t>> changes;
    const uint64_t there = header_.BlocksInFile(TRY(file_.Size()));
    BlockSet used(std::max<uint64_t>(there, end));
    TRY(ReadMap(file_, header_, [&](uint32_t first, std::span<const le32> entries) -> Result<> {
      for (size_t i = 0; i < entries.size(); ++i) {
        if (!IsHostBlock(entries[i])) continue;
        const auto block = static_cast<uint32_t>(first + i);
        if (entries[i] >= survey_.end) {
          TRY(WriteEntry(file_, header_, block, kDiscarded));
        } else if (!used.Insert(entries[i])) {
          TRY(CopyBlock(file_, header_, entries[i], end_));
          changes.emplace_back(block, end_++);
        }
      }
      return {};
    }));
    TRY(file_.Sync());
    for (auto [block, entry] : changes) TRY(WriteEntry(file_, header_, block, entry));
    TRY(file_.Sync());
    mended_ = true;
    return {};
  }

  Result<> FillHoles() {
    uint64_t free = 0;
    for (const auto& hole : survey_.holes) free += hole.count;
    const uint32_t used = end_ - static_cast<uint32_t>(free);
    TRY(MoveIntoHoles(file_, header_, survey_.holes, used));
    end_ = used;
    return {};
  }

  Result<> Cover(uint64_t blocks) {
    const uint64_t needed = header_.data_offset + blocks * header_.stride();
    if (TRY(file_.Size()) >= needed) return {};
    return file_.Resize(needed).WithPrefix("growing the file");
  }

  Result<> Cut() {
    const uint64_t size = header_.data_offset + end_ * header_.stride();
    return TRY(file_.Size()) <= size ? Result<>() : file_.Resize(size);
  }

  Store& file_;
  const Survey& survey_;
  Header header_;
  uint32_t end_;  // host blocks: behind the last one in use
  bool mended_ = false;
};

}  // namespace

Result<> RepairImage(Store& file, const Survey& survey, CheckOptions::Repair repair) {
  return Repairer(file, survey).Run(repair);
}

}  // namespace platter::vdi
