// An undo file is the header, then for each run of bytes that changed its place in the image, what
// it held before, and, once the repair is through, what it holds after.
#include "tools/repair_plan.h"

#include <algorithm>

#include "base/endian.h"
#include "io/atomic_file.h"
#include "io/file_store.h"
#include "io/shadow_store.h"

namespace platter {
namespace {

constexpr uint64_t kMostPlanned = kGiB;  // bytes that a repair may write
constexpr char kMagic[] = "platter undo 1\n";

struct DiskUndo {
  char magic[16];
  le64 complete;  // 1: the bytes after the repair are there
  le64 size_before, size_after, cut_at, runs;
};
static_assert(sizeof(DiskUndo) == 56 && alignof(DiskUndo) == 1);
struct DiskRun {
  le64 offset, length;
};
static_assert(sizeof(DiskRun) == 16 && alignof(DiskRun) == 1);

// Files that an image names, as shadows too.
class ShadowOpener final : public Opener {
 public:
  explicit ShadowOpener(Opener* inner) : inner_(inner) {}
  bool used() const { return !bases_.empty(); }

  Result<std::unique_ptr<Store>> OpenReference(const Reference& reference, bool) override {
    if (!inner_) return Fail(Code::kRefused, "needs another file, '{}'", Printable(reference.name));
    bases_.push_back(TRY(inner_->OpenReference(reference, false)));
    return TRY(ShadowStore::Over(*bases_.back(), kMostPlanned));
  }

 private:
  Opener* const inner_;
  std::vector<std::unique_ptr<Store>> bases_;
};

// What is written, and what is cut off.
std::vector<Range> RunsOf(const RepairPlan& plan) {
  std::vector<Range> runs;
  for (Range range : plan.written) {
    range = range.Intersect({0, std::min(plan.size_before, plan.cut_at)});
    if (!range.empty()) runs.push_back(range);
  }
  if (plan.cut_at < plan.size_before) {
    runs.push_back(Range::FromTo(plan.cut_at, plan.size_before));
  }
  return runs;
}

// Bytes of `range`, zeros where the image ends.
Result<std::vector<std::byte>> ReadRun(Store& image, Range range) {
  std::vector<std::byte> bytes(range.length);
  const uint64_t size = TRY(image.Size());
  const Range there = range.Intersect({0, size});
  if (!there.empty()) TRY(image.Read(there.offset, Bytes(bytes).first(there.length)));
  return bytes;
}

struct Undo {
  DiskUndo head;
  struct Run {
    Range range;
    std::vector<std::byte> before, after;
  };
  std::vector<Run> runs;
};

Result<> Save(const std::string& path, const Undo& undo, bool replace) {
  AtomicFile file = TRY(AtomicFile::Create(path, {.replace = replace}));
  {
    std::unique_ptr<Store> store = file.TakeStore();
    uint64_t at = 0;
    auto put = [&](ConstBytes bytes) -> Result<> {
      TRY(store->Write(at, bytes));
      at += bytes.size();
      return {};
    };
    TRY(put(AsBytes(undo.head)));
    for (const Undo::Run& run : undo.runs) {
      TRY(put(AsBytes(DiskRun{run.range.offset, run.range.length})));
      TRY(put(run.before));
      if (undo.head.complete != 0) TRY(put(run.after));
    }
  }
  return file.Commit();
}

Result<Undo> Load(const std::string& path) {
  auto file = TRY(FileStore::Open(path, {}));
  Undo undo;
  const uint64_t size = TRY(file->Size());
  auto bad = [] { return Fail(Code::kCorrupt, "this is no undo file, or not a whole one"); };
  if (size < sizeof undo.head || size > 2 * kMostPlanned + kGiB) return bad();
  std::vector<std::byte> bytes(size);
  TRY(file->Store::Read(0, Bytes(bytes)));
  undo.head = *LoadAt<DiskUndo>(bytes, 0);
  if (!std::equal(std::begin(kMagic), std::end(kMagic), undo.head.magic)) return bad();
  uint64_t at = sizeof undo.head;
  auto take = [&](uint64_t length) {
    ConstBytes part = ConstBytes(bytes).subspan(at, length);
    at += length;
    return std::vector<std::byte>(part.begin(), part.end());
  };
  for (uint64_t i = 0; i < undo.head.runs; ++i) {
    auto disk = LoadAt<DiskRun>(bytes, at);
    if (!disk) return bad();
    at += sizeof *disk;
    Undo::Run run{{disk->offset, disk->length}, {}, {}};
    const uint64_t copies = undo.head.complete != 0 ? 2 : 1;
    if (run.range.length > size || !FitsIn(at, run.range.length * copies, size) ||
        !FitsIn(run.range.offset, run.range.length, undo.head.size_before)) {
      return bad();
    }
    run.before = take(run.range.length);
    if (copies == 2) run.after = take(run.range.length);
    undo.runs.push_back(std::move(run));
  }
  if (at != size) return bad();
  return undo;
}

// The image is as the repair left it, or as it was, or something of both.
Result<> CheckUnchanged(Store& image, const Undo& undo) {
  const uint64_t size = TRY(image.Size());
  // In between where the repair, or taking it back, was interrupted.
  const uint64_t was = undo.head.size_before, became = undo.head.size_after;
  bool same = size >= std::min(was, became) && size <= std::max(was, became);
  for (const Undo::Run& run : undo.runs) {
    if (!same) break;
    if (undo.head.complete == 0) continue;
    const std::vector<std::byte> now = TRY(ReadRun(image, run.range));
    for (uint64_t at = 0; same && at < now.size(); at += 512) {
      auto part = [&](const std::vector<std::byte>& bytes) {
        return ConstBytes(bytes).subspan(at, std::min<uint64_t>(512, bytes.size() - at));
      };
      same = std::ranges::equal(part(now), part(run.after)) ||
             std::ranges::equal(part(now), part(run.before));
    }
  }
  if (same) return {};
  return Fail(Code::kRefused, "'{}' is not as the repair left it: nothing was put back",
              image.name());
}

}  // namespace

uint64_t RepairPlan::bytes() const {
  uint64_t sum = 0;
  for (Range range : written) sum += range.length;
  return sum;
}

Result<RepairPlan> PlanRepair(const Format& format, Store& store, Opener* opener,
                              CheckOptions::Repair repair) {
  RepairPlan plan;
  ShadowOpener others(opener);
  auto shadow = TRY(ShadowStore::Over(store, kMostPlanned));
  plan.report =
      TRY(format.check(*shadow, {.writable = true, .opener = &others}, {.repair = repair}));
  plan.written = TRY(shadow->Changed());
  plan.size_before = TRY(store.Size());
  plan.size_after = TRY(shadow->Size());
  plan.cut_at = shadow->cut_at();
  plan.other_files = others.used();
  return plan;
}

Result<> WriteUndo(const std::string& path, Store& image, const RepairPlan& plan) {
  if (plan.other_files) {
    return Fail(Code::kUnsupported, "--undo: the image consists of several files");
  }
  Undo undo{};
  std::copy(std::begin(kMagic), std::end(kMagic), undo.head.magic);
  undo.head.size_before = plan.size_before;
  undo.head.size_after = plan.size_after;
  undo.head.cut_at = plan.cut_at;
  for (Range range : RunsOf(plan)) {
    if (range.length > kMostPlanned) {
      return Fail(Code::kNoSpace, "--undo: {} bytes are too many to keep", range.length);
    }
    undo.runs.push_back({range, TRY(ReadRun(image, range)), {}});
  }
  undo.head.runs = undo.runs.size();
  return Save(path, undo, /*replace=*/false);
}

Result<> CompleteUndo(const std::string& path, Store& image) {
  Undo undo = TRY(Load(path));
  undo.head.complete = 1;
  undo.head.size_after = TRY(image.Size());
  for (Undo::Run& run : undo.runs) run.after = TRY(ReadRun(image, run.range));
  return Save(path, undo, /*replace=*/true);
}

Result<> ApplyUndo(const std::string& path, Store& image) {
  const Undo undo = TRY_AS(fmt::format("'{}'", Printable(path, 4096)), Load(path));
  TRY(CheckUnchanged(image, undo));
  for (const Undo::Run& run : undo.runs) {
    TRY(image.Write(run.range.offset, ConstBytes(run.before)));
  }
  TRY(image.Sync());
  if (TRY(image.Size()) != undo.head.size_before) TRY(image.Resize(undo.head.size_before));
  return image.Sync();
}

}  // namespace platter
