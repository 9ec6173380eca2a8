// The order of things, and what a crash after each leaves:
//
//   1. The base is opened for writing, and grows.                        more room, which no one
//   sees
//   2. Where the child records which content of the base it means, the
//      base gets its new version by a first write that changes nothing.  the chain is refused until
//                                                                        the child says so again
//   3. The child records the new version.                                the chain as it was
//   4. What the images above hold is copied into the base, and flushed.  the chain reads the same
//   5. The image drops what it holds.                                    the chain reads the same
//
// Step 2 and 3 are one sector each. The other order cannot be had, since an image chooses its
// version itself when it is written to.
#include "cow/commit.h"

#include <climits>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"
#include "cow/set_parent.h"

namespace platter {

namespace {

class Committer {
 public:
  Committer(const std::string& path, const CommitOptions& options, const Gate& gate,
            std::vector<std::string>* warnings)
      : path_(path), o_(options), gate_(gate), warnings_(warnings) {}

  Result<CommitOutcome> Run() {
    entries_ = TRY(ReadChainInfo(path_, o_.open, gate_, /*parents=*/true, warnings_));
    if (entries_.size() < 2) {
      return Fail(Code::kRefused, "'{}' has no parent to commit into", Printable(path_, PATH_MAX));
    }
    base_at_ = o_.base.empty() ? 1 : TRY(FindInChain(entries_, o_.base, gate_));
    if (base_at_ == 0) {
      return Fail(Code::kRefused, "'{}' is the image itself, and no parent of it",
                  Printable(o_.base, PATH_MAX));
    }
    TRY(CheckSnapshots());
    CommitOutcome outcome{.base = entries_[base_at_].path};
    outcome.emptied = base_at_ == 1 && !o_.keep;
    TRY(OpenBase());
    TRY(RenewVersion());
    TRY(CopyDown(outcome.emptied));
    return outcome;
  }

 private:
  const Reference& recorded() const { return *ParentOf(entries_[base_at_ - 1].info); }

  // Those of an image above the base show what the base holds where they hold nothing themselves.
  Result<> CheckSnapshots() const {
    for (size_t i = 0; i < base_at_; ++i) {
      if (entries_[i].info.snapshots.empty()) continue;
      return Fail(Code::kRefused,
                  "'{}' has internal snapshots, which would not read the same over another content "
                  "of their parent: delete them first",
                  Printable(entries_[i].path, PATH_MAX));
    }
    return {};
  }

  Result<> OpenBase() {
    DiskOptions options = o_.open;
    options.format = FormatToOpen(entries_, base_at_);
    options.file.writable = true;
    options.options.clear();
    base_ = TRY(Disk::Open(entries_[base_at_].path, options, gate_, nullptr));
    const uint64_t size = entries_[0].info.size;
    if (base_->info().size >= size) return {};
    Resizer* resizer = base_->resizer();
    if (!resizer) {
      return Fail(Code::kUnsupported, "'{}' has {} bytes, the image {}: {} images cannot grow",
                  Printable(base_->path(0), PATH_MAX), base_->info().size, size,
                  base_->info().format);
    }
    TRY_AS(fmt::format("growing '{}'", Printable(base_->path(0), PATH_MAX)),
           resizer->Resize(size, Preallocation::kOff));
    return base_->Flush();
  }

  // Steps 2 and 3.
  Result<> RenewVersion() {
    if (recorded().versions.empty() || base_->info().size == 0) return {};
    std::byte byte{};
    TRY(Read(*base_, 0, Bytes(&byte, 1)));
    TRY(Write(*base_, 0, ConstBytes(&byte, 1)));
    TRY(base_->Flush());
    return RecordBase();
  }

  // The child names the base as it is now.
  Result<> RecordBase() {
    const ChainEntry& child = entries_[base_at_ - 1];
    ParentFile file = TRY(LookAtParent(*base_, child.path, gate_));
    // As its headers say: a layer tells what it was when it was opened.
    DiskOptions look{.format = base_->info().format, .file = {.lock = false}};
    auto now = TRY(ReadChainInfo(base_->path(0), look, gate_, /*parents=*/false, nullptr));
    file.info.identity = now[0].info.identity;
    DiskOptions options = o_.open;
    options.format = FormatToOpen(entries_, base_at_ - 1);
    Reference parent = recorded();
    if (parent.name.empty()) parent.name = file.relative;
    return SetParent(child.path, options, gate_, parent, file);
  }

  Result<> CopyDown(bool empty) {
    DiskOptions options = o_.open;
    options.format = entries_[0].info.format;
    options.file.writable = empty;
    options.layers = base_at_;
    auto upper = TRY(Disk::Open(path_, options, gate_, nullptr));
    TRY(CommitInto(*upper, *base_, o_.copy, empty));
    upper.reset();
    if (!recorded().modified) return {};
    // Only now is it known when the base was written last.
    TRY(Close());
    return RecordBaseAgain();
  }

  Result<> Close() {
    TRY(base_->Flush());
    base_.reset();
    return {};
  }

  Result<> RecordBaseAgain() {
    DiskOptions options = o_.open;
    options.format = FormatToOpen(entries_, base_at_);
    options.options.clear();
    base_ = TRY(Disk::Open(entries_[base_at_].path, options, gate_, nullptr));
    return RecordBase();
  }

  const std::string& path_;
  const CommitOptions& o_;
  const Gate& gate_;
  std::vector<std::string>* const warnings_;
  std::vector<ChainEntry> entries_;
  size_t base_at_ = 1;  // of entries_
  std::unique_ptr<Disk> base_;
};

}  // namespace

Result<> DropOwn(Layer& layer) {
  for (Range rest{0, layer.info().size}; !rest.empty();) {
    const Range dropped = TRY(layer.Discard(rest, Kind::kParent));
    if (dropped.empty()) break;
    CHECK(dropped.offset >= rest.offset && dropped.end() <= rest.end());
    rest = Range::FromTo(dropped.end(), rest.end());
  }
  return layer.Flush();
}

Result<> CommitInto(Disk& upper, Layer& base, CopyOptions copy, bool empty) {
  Disk::Alone alone(upper);
  copy.skip_parent = true;
  TRY(Copy(alone, base, {0, alone.info().size}, copy));
  TRY(base.Flush());
  return empty ? DropOwn(alone) : Result<>();
}

Result<CommitOutcome> Commit(const std::string& path, const CommitOptions& options,
                             const Gate& gate, std::vector<std::string>* warnings) {
  return Committer(path, options, gate, warnings).Run();
}

}  // namespace platter
