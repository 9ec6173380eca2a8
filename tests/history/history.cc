#include "tests/history/history.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "base/check.h"
#include "cow/commit.h"
#include "cow/create.h"
#include "cow/overlay.h"
#include "cow/rebase.h"
#include "formats/in_place_registry.h"
#include "io/bitmapper.h"
#include "io/engine/engine.h"
#include "tests/interop/qemu.h"

namespace platter::history {

namespace fs = std::filesystem;
using testing_support::Shell;

namespace {

constexpr uint64_t kMostOverlays = 5;
constexpr char kBitmap[] = "b";

Gate OurGate() { return Gate(GatePolicy{}); }

Range PickRange(Random& random, uint64_t size, bool sectors) {
  uint64_t at = random.Below(size);
  uint64_t length = random.OneIn(4) ? random.Between(1, 300'000) : random.Between(1, 9000);
  if (sectors || random.OneIn(3)) {
    at = RoundDown(at, 512);
    length = RoundUp(length, 512);
  }
  return {at, std::min(length, size - at)};
}

Result<> Run(const std::string& command) {
  auto outcome = Shell(command);
  if (outcome.exit_code == 0) return {};
  return Fail(Code::kIo, "{}: exit code {}: {}", command, outcome.exit_code, outcome.output);
}

}  // namespace

std::vector<Setup> Setups() {
  return {{"qcow2 over raw", "qcow2", "raw", 3 * kMiB, true},
          {"qcow2 over qcow2", "qcow2", "qcow2", 4 * kMiB + 512, true},
          {"qcow2 over vmdk", "qcow2", "vmdk", 3 * kMiB},
          {"qcow2 over vdi", "qcow2", "vdi", 3 * kMiB},
          {"qcow2 over vhdx", "qcow2", "vhdx", 3 * kMiB},
          {"qcow2 over vpc", "qcow2", "vpc", 3 * kMiB},
          {"vmdk", "vmdk", "vmdk", 3 * kMiB},
          {"vdi", "vdi", "vdi", 4 * kMiB},
          {"vhdx", "vhdx", "vhdx", 4 * kMiB},
          {"vpc", "vpc", "vpc", 4 * kMiB}};
}

std::string Op::ToText() const {
  static constexpr const char* kNames[] = {"write",  "zero",     "flush",  "snapshot", "apply",
                                           "delete", "external", "commit", "stream",   "rebase",
                                           "resize", "compact",  "bitmap"};
  return fmt::format("{}{} {:#x}+{:#x} number {} name '{}' size {}", kNames[kind],
                     by_qemu ? " (qemu)" : "", range.offset, range.length, number, name, size);
}

std::vector<std::byte> ContentOf(const Op& op) {
  std::vector<std::byte> bytes(op.range.length);
  if (op.kind != Op::kWrite) return bytes;
  if (op.by_qemu) {
    std::ranges::fill(bytes, static_cast<std::byte>(op.number % 255 + 1));
  } else {
    Random(op.number).Fill(bytes);
  }
  return bytes;
}

Op Model::Pick(Random& random, const Setup& setup) const {
  Op op;
  op.number = random.Next();
  op.by_qemu = setup.qemu && random.OneIn(6);
  const uint64_t die = random.Below(100);
  op.range = PickRange(random, bytes.size(), op.by_qemu);
  const bool whole = snapshots.empty();  // with snapshots parents cannot change
  if (die < 50) {
    op.kind = Op::kWrite;
  } else if (die < 62) {
    op.kind = Op::kZero;
  } else if (die < 65 && setup.snapshots()) {
    op.kind = random.OneIn(2) ? Op::kCompact : Op::kBitmap;
  } else if (die < 75) {
    op.kind = Op::kFlush;
  } else if (die < 84 && setup.snapshots()) {
    op.kind = snapshots.empty() || random.OneIn(2) ? Op::kSnapshot
              : random.OneIn(2)                    ? Op::kApply
                                                   : Op::kDelete;
    if (op.kind == Op::kSnapshot) {
      op.name = fmt::format("s{}", made);
    } else {
      const auto& [name, content] =
          *std::next(snapshots.begin(), static_cast<ptrdiff_t>(random.Below(snapshots.size())));
      op.name = name;
      // Bitmaps do not follow the disk to another size.
      if (bitmap && content.size() != bytes.size()) op.kind = Op::kDelete;
    }
  } else if (die < 88 && overlays < kMostOverlays) {
    op.kind = Op::kExternal;
    op.name = fmt::format("e{}", made);
  } else if (die < 92 && whole) {
    op.kind = Op::kCommit;
  } else if (die < 94 && whole) {
    op.kind = Op::kStream;
  } else if (die < 96 && whole) {
    op.kind = Op::kRebase;
    op.name = fmt::format("r{}", made);
  } else if (die < 98 && setup.resizes()) {
    op.kind = Op::kResize;
    op.size = RoundUp(random.Between(kMiB, 6 * kMiB), 512);
  }
  bool can = op.kind == Op::kWrite || op.kind == Op::kZero || op.kind == Op::kCommit ||
             op.kind == Op::kSnapshot || op.kind == Op::kDelete ||
             (op.kind == Op::kApply && !bitmap);  // which QEMU refuses
  op.by_qemu = op.by_qemu && can;
  return op;
}

void Model::Do(const Op& op) {
  switch (op.kind) {
    case Op::kWrite:
    case Op::kZero:
      std::ranges::copy(ContentOf(op), bytes.begin() + static_cast<ptrdiff_t>(op.range.offset));
      break;
    case Op::kSnapshot: snapshots[op.name] = bytes; break;
    case Op::kApply: bytes = snapshots.at(op.name); break;
    case Op::kDelete: snapshots.erase(op.name); break;
    case Op::kExternal:
      snapshots.clear();
      marked.reset();
      bitmap = false;
      ++overlays;
      break;
    case Op::kBitmap:
      marked = bytes;
      bitmap = true;
      break;
    case Op::kRebase:
    case Op::kStream: overlays = 0; break;
    case Op::kResize: bytes.resize(op.size); break;
    default: break;
  }
  if (!op.name.empty()) ++made;
}

Result<Disk*> Machine::disk() {
  if (!disk_) {
    DiskOptions options{.format = setup_.top, .file = {.writable = true}};
    disk_ = TRY(Disk::Open(top(), options, OurGate(), nullptr));
  }
  return disk_.get();
}

Result<> Machine::Close() {
  if (!disk_) return {};
  Result<> flushed = disk_->Flush();
  disk_.reset();
  return flushed;
}

Result<> Machine::MakeBase(const std::string& path, const std::string& format, uint64_t size,
                           Random& random, std::vector<std::byte>* content) {
  NewImageOptions create{.format = format, .replace = true};
  create.create.size = size;
  if (format == "vpc") create.create.options["force_size"] = "on";
  auto image = TRY(NewImage::Create(path, create, OurGate(), nullptr));
  std::vector<std::byte> bytes(size);
  for (int i = 0; i < 6; ++i) {
    const Range range = PickRange(random, size, false);
    random.Fill(Bytes(bytes).subspan(range.offset, range.length));
    TRY(Write(image->disk(), range.offset, ConstBytes(bytes).subspan(range.offset, range.length)));
  }
  if (content) *content = std::move(bytes);
  return image->Commit();
}

Result<> Machine::Create(Random& random, Model& model) {
  // Longer or shorter than the disk, at times; but the formats that record more need it as it is.
  uint64_t base_size = setup_.size;
  if (setup_.resizes() && random.OneIn(2)) {
    base_size = RoundUp(random.Between(kMiB, 5 * kMiB), 512);
  }
  std::vector<std::byte> content;
  const std::string base = "base." + setup_.base;
  TRY(MakeBase(folder_ + "/" + base, setup_.base, base_size, random, &content));
  NewImageOptions create{.format = setup_.top};
  create.create.size = setup_.size;
  create.create.parent = Reference{Reference::kParent, base, setup_.base};
  auto image = TRY(NewImage::Create(top(), create, OurGate(), nullptr));
  TRY(image->Commit());
  model = Model{};
  model.bytes = std::move(content);
  model.bytes.resize(setup_.size);
  model.overlays = 1;
  return {};
}

Result<std::vector<std::string>> Machine::Chain() const {
  DiskOptions look{.format = setup_.top};
  std::vector<std::string> paths;
  for (const ChainEntry& entry : TRY(ReadChainInfo(top(), look, OurGate(), true, nullptr))) {
    paths.push_back(entry.path);
  }
  return paths;
}

Result<> Machine::Tidy() const {
  std::set<std::string> kept;
  for (const std::string& path : TRY(Chain())) kept.insert(fs::path(path).filename());
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (!kept.contains(entry.path().filename())) fs::remove(entry.path());
  }
  return {};
}

Result<> Machine::Do(const Op& op) {
  if (op.by_qemu) return DoByQemu(op);
  const bool data = op.kind <= Op::kDelete || op.kind == Op::kResize || op.kind == Op::kBitmap;
  if (!data) TRY(Close());
  switch (op.kind) {
    case Op::kWrite: return Write(*TRY(disk()), op.range.offset, ConstBytes(ContentOf(op)));
    case Op::kZero: return Zero(*TRY(disk()), op.range, op.number % 2 == 0);
    case Op::kFlush: return TRY(disk())->Flush();
    case Op::kSnapshot: return TRY(disk())->snapshotter()->CreateSnapshot(op.name);
    case Op::kApply: return TRY(disk())->snapshotter()->ApplySnapshot(op.name);
    case Op::kDelete: return TRY(disk())->snapshotter()->DeleteSnapshot(op.name);
    case Op::kResize:
      TRY(TRY(disk())->resizer()->Resize(op.size, Preallocation::kOff));
      return TRY(disk())->Flush();
    case Op::kExternal: {
      ExternalSnapshotOptions options;
      options.open.format = setup_.top;
      return TakeExternalSnapshot(top(), SnapshotPath(top(), op.name), options, OurGate(), nullptr);
    }
    case Op::kCommit: {
      const auto chain = TRY(Chain());
      if (chain.size() == 1) return {};
      CommitOptions options{.open = {.format = setup_.top}};
      if (op.number % 3 == 0) options.base = chain[1 + op.number % (chain.size() - 1)];
      auto done = Commit(top(), options, OurGate(), nullptr);
      // An image in between may have snapshots inside.
      if (!done && done.error().code() == Code::kRefused && !options.base.empty()) {
        options.base.clear();
        done = Commit(top(), options, OurGate(), nullptr);
      }
      TRY(std::move(done));
      return {};
    }
    case Op::kStream: {
      const auto chain = TRY(Chain());
      const bool must_stay = setup_.top == "vhdx" || setup_.top == "vpc";
      std::string base;
      if (chain.size() > 1 && (must_stay || op.number % 2 == 0)) {
        base = chain[1 + op.number / 2 % (chain.size() - 1)];
      }
      if (chain.size() == 1) return {};
      return Stream(top(), base, {.open = {.format = setup_.top}}, OurGate(), nullptr);
    }
    case Op::kRebase: return RebaseOnto(op);
    case Op::kCompact: return Compact();
    case Op::kBitmap: return BeginBitmap(op.number);
  }
  return {};
}

Result<> Machine::Compact() const {
  const Gate gate = OurGate();
  const DiskOptions options{.format = setup_.top, .file = {.writable = true}};
  TopImage image = TRY(OpenTopImage(top(), options, gate, nullptr));
  const OpenOptions open{.writable = true, .opener = image.opener.get()};
  TRY(FindInPlace(*image.format)->compact(*image.store, open));
  return {};
}

Result<> Machine::BeginBitmap(uint64_t number) {
  Bitmapper& bitmaps = *TRY(disk())->bitmapper();
  if (!disk_->info().bitmaps.empty()) TRY(bitmaps.RemoveBitmap(kBitmap));
  return bitmaps.AddBitmap({.name = kBitmap, .granularity = uint64_t{512} << number % 8});
}

Result<std::vector<BitmapInfo>> Machine::Bitmaps() const {
  const DiskOptions look{.format = setup_.top};
  return TRY(ReadChainInfo(top(), look, OurGate(), false, nullptr))[0].info.bitmaps;
}

// What differs from what the disk held when the bitmap began has to be dirty.
Result<std::string> Machine::JudgeBitmap(const Model& model) const {
  if (!model.marked) return std::string();
  const DiskOptions options{.format = setup_.top};
  auto disk = TRY(Disk::Open(top(), options, OurGate(), nullptr));
  std::vector<bool> dirty(model.bytes.size());
  TRY(disk->bitmapper()->VisitDirty(kBitmap, {0, model.bytes.size()}, [&](Range range) {
    std::fill_n(dirty.begin() + static_cast<ptrdiff_t>(range.offset), range.length, true);
    return true;
  }));
  for (size_t i = 0; i < dirty.size(); ++i) {
    const std::byte before = i < model.marked->size() ? (*model.marked)[i] : std::byte{0};
    if (!dirty[i] && model.bytes[i] != before) {
      return fmt::format("byte {:#x} was changed, and the bitmap says that it was not", i);
    }
  }
  return std::string();
}

Result<> Machine::RebaseOnto(const Op& op) {
  const bool alone = TRY(Chain()).size() == 1;
  if (alone && (setup_.top == "vhdx" || setup_.top == "vpc")) return {};
  Random random(op.number);
  const std::string format = setup_.top != "qcow2" ? setup_.top
                             : random.OneIn(2)     ? "raw"
                                                   : setup_.base;
  const std::string name = fmt::format("{}.{}", op.name, format);
  uint64_t size = setup_.size;
  if (setup_.resizes()) size = RoundUp(random.Between(kMiB, 6 * kMiB), 512);
  TRY(MakeBase(folder_ + "/" + name, format, size, random, nullptr));
  RebaseOptions options{.open = {.format = setup_.top}};
  options.parent = Reference{Reference::kParent, name, format};
  return Rebase(top(), options, OurGate(), nullptr);
}

Result<> Machine::DoByQemu(const Op& op) {
  TRY(Close());
  const std::string image = top();
  switch (op.kind) {
    case Op::kWrite:
      return Run(fmt::format("qemu-io -f {} -c 'write -P {} {} {}' {} > /dev/null", setup_.top,
                             op.number % 255 + 1, op.range.offset, op.range.length, image));
    case Op::kZero:
      return Run(fmt::format("qemu-io -f {} -c 'write -z {} {} {}' {} > /dev/null", setup_.top,
                             op.number % 2 == 0 ? "-u" : "", op.range.offset, op.range.length,
                             image));
    case Op::kSnapshot: return Run(fmt::format("qemu-img snapshot -c {} {}", op.name, image));
    case Op::kApply: return Run(fmt::format("qemu-img snapshot -a {} {}", op.name, image));
    case Op::kDelete: return Run(fmt::format("qemu-img snapshot -d {} {}", op.name, image));
    case Op::kCommit:
      if (TRY(Chain()).size() == 1) return {};
      return Run(fmt::format("qemu-img commit -q -f {} {}", setup_.top, image));
    default: return Fail(Code::kUnsupported, "QEMU does not do this: {}", op.ToText());
  }
}

Result<std::vector<std::byte>> Machine::Read(const std::string& snapshot) const {
  DiskOptions options{.format = setup_.top, .snapshot = snapshot};
  auto disk = TRY(Disk::Open(top(), options, OurGate(), nullptr));
  std::vector<std::byte> bytes(disk->info().size);
  if (!bytes.empty()) TRY(platter::Read(*disk, 0, Bytes(bytes)));
  return bytes;
}

Result<std::string> Machine::Judge(const Model& model) {
  TRY(Close());
  auto differs = [](const std::string& what, const std::vector<std::byte>& have,
                    const std::vector<std::byte>& want) -> std::string {
    if (have == want) return "";
    if (have.size() != want.size()) {
      return fmt::format("{} has {} bytes, not {}", what, have.size(), want.size());
    }
    auto at = std::ranges::mismatch(have, want).in1 - have.begin();
    return fmt::format("{} is wrong at {:#x}", what, at);
  };
  if (auto wrong = differs("the disk", TRY(Read()), model.bytes); !wrong.empty()) return wrong;
  for (const auto& [name, bytes] : model.snapshots) {
    auto wrong = differs("snapshot " + name, TRY(Read(name)), bytes);
    if (!wrong.empty()) return wrong;
  }
  if (auto wrong = TRY(JudgeBitmap(model)); !wrong.empty()) return wrong;
  for (const std::string& path : TRY(Chain())) {
    const Gate gate = OurGate();
    auto image = TRY(OpenTopImage(path, {}, gate, nullptr));
    if (!image.format->check) continue;
    OpenOptions open{.opener = image.opener.get()};
    auto report = TRY(image.format->check(*image.store, open, {}));
    if (report.corruptions + report.errors == 0) continue;
    return fmt::format("'{}': {}", path, report.findings[0].text);
  }
  return setup_.qemu ? JudgeByQemu(model) : std::string();
}

Result<std::string> Machine::JudgeByQemu(const Model& model) const {
  const std::string want = folder_ + "/want";
  {
    std::ofstream file(want, std::ios::binary);
    file.write(reinterpret_cast<const char*>(model.bytes.data()),
               static_cast<std::streamsize>(model.bytes.size()));
  }
  auto same = Shell(fmt::format("qemu-img compare -f raw -F {} {} {}", setup_.top, want, top()));
  fs::remove(want);
  if (same.exit_code != 0) return "qemu-img compare: " + same.output;
  for (const std::string& path : TRY(Chain())) {
    if (!path.ends_with(".qcow2")) continue;
    auto check = Shell("qemu-img check -f qcow2 " + path);
    if (check.exit_code != 0 && check.exit_code != 3) return "qemu-img check: " + check.output;
  }
  return std::string();
}

}  // namespace platter::history
