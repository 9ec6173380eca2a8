// How the threads share the work: each takes the next few tables off the list, reads and decodes
// them with no lock held, then waits for its turn and merges what it found into the survey. Turns
// go in the order of the list, so that reports do not depend on timing.
//
// Locks: TablePass::mutex_ guards the list position, the turn and, during a merge, the survey. It
// is the only lock here, and no I/O happens under it.
#include "formats/qcow2/qcow2_check_tables.h"

#include <algorithm>
#include <mutex>
#include <thread>

#include "base/endian.h"
#include "base/sync.h"

namespace platter::qcow2::check {
namespace {

constexpr auto kCorruption = CheckReport::Finding::kCorruption;
constexpr auto kError = CheckReport::Finding::kError;

constexpr uint64_t kBatchBytes = kMiB;
constexpr unsigned kMaxThreads = 4;
constexpr uint64_t kThreadedBytes = 4 * kMiB;  // of tables: fewer are not worth a thread

// What one batch of tables has to say.
struct Outcome {
  enum Mark : uint8_t { kNoMark, kCopiedMark, kSharedMark };
  struct Ref {
    uint64_t cluster;
    uint32_t weight;
    Mark mark;
  };
  std::vector<Ref> refs;
  Owners owners;
  Findings findings, unreadable;
  Statistics statistics;
};

class TablePass {
 public:
  using Work = std::function<void(const TableRef&, ConstBytes, Outcome&)>;
  using Merge = std::function<void(Outcome&&)>;

  TablePass(const Image& image, const Survey& survey, Work work, Merge merge)
      : image_(image), survey_(survey), work_(std::move(work)), merge_(std::move(merge)) {}

  void Run() {
    unsigned threads = 1;
    if (survey_.tables.size() * image_.cluster_size() >= kThreadedBytes) {
      threads = std::clamp(std::thread::hardware_concurrency(), 1u, kMaxThreads);
    }
    std::vector<std::jthread> others;
    for (unsigned i = 1; i < threads; ++i) others.emplace_back([this] { Worker(); });
    Worker();
  }

 private:
  void Worker() {
    Holes holes(image_);
    std::vector<std::byte> buffer;
    std::unique_lock lock(mutex_);
    while (next_ < survey_.tables.size()) {
      size_t begin = next_, number = taken_++;
      next_ += std::clamp<uint64_t>(kBatchBytes / image_.cluster_size(), 1,
                                    survey_.tables.size() - next_);
      size_t end = next_;
      lock.unlock();
      Outcome outcome;
      for (size_t at = begin; at < end;) at = ReadRun(at, end, holes, buffer, outcome);
      lock.lock();
      turn_.Wait(lock, [&] { return merged_ == number; });
      merge_(std::move(outcome));
      ++merged_;
      turn_.NotifyAll();
    }
  }

  // Tables from `at` on that lie one after the other; returns the first that does not.
  size_t ReadRun(size_t at, size_t end, Holes& holes, std::vector<std::byte>& buffer,
                 Outcome& outcome) {
    const std::vector<TableRef>& tables = survey_.tables;
    uint64_t cluster = image_.cluster_size();
    if (holes.Covers({tables[at].offset, cluster})) return at + 1;
    size_t last = at + 1;
    while (last < end && tables[last].offset == tables[last - 1].offset + cluster) ++last;
    buffer.resize((last - at) * cluster);
    auto read = image_.Read(tables[at].offset, buffer);
    for (size_t i = at; i < last; ++i) {
      if (read.has_value()) {
        work_(tables[i], Bytes(buffer).subspan((i - at) * cluster, cluster), outcome);
      } else {
        outcome.unreadable.Add(kError, Remedy::kNone, [&] {
          return fmt::format("{}: {}", survey_.Name(tables[i]), read.error().text());
        });
      }
    }
    return last;
  }

  const Image& image_;
  const Survey& survey_;  // written by merge_ only, to parts that work_ does not look at
  const Work work_;
  const Merge merge_;
  Mutex mutex_;
  CondVar turn_;
  size_t next_ = 0, taken_ = 0, merged_ = 0;
};

// How the allocation of active guest clusters looks: what qemu-img calls fragmentation.
class Tally {
 public:
  Tally(const Header& header, uint32_t weight, Statistics& into)
      : header_(header), weight_(weight), into_(into) {}

  void Add(L2Entry entry) {
    if (weight_ == 0) return;
    if (entry.descriptor & kCompressed) {
      into_.allocated += weight_;
      into_.compressed += weight_;
      into_.fragmented += weight_;  // by its nature
      return;
    }
    uint64_t host = entry.descriptor & kOffsetMask;
    if (host == 0 && !(header_.has_data_file() && (entry.descriptor & kCopied))) return;
    into_.allocated += weight_;
    if (expected_ != 0 && host != expected_) into_.fragmented += weight_;
    expected_ = host + header_.cluster_size();
  }

 private:
  const Header& header_;
  const uint32_t weight_;
  Statistics& into_;
  uint64_t expected_ = 0;  // where the next cluster of the table would continue the last
};

// The bytes that a damaged entry names, as far as it names any.
Range RawHost(const Header& header, L2Entry entry) {
  if (!(entry.descriptor & kCompressed)) {
    return {entry.descriptor & kOffsetMask, header.cluster_size()};
  }
  uint32_t shift = 62 - (header.cluster_bits - 8);
  uint64_t host = entry.descriptor & ((uint64_t{1} << shift) - 1);
  uint64_t sectors = ((entry.descriptor & (kCompressed - 1)) >> shift) + 1;
  return {host, sectors * 512 - host % 512};
}

void CountTable(const Image& image, const Survey& survey, const TableRef& table, ConstBytes bytes,
                Outcome& out) {
  const Header& header = image.header;
  Tally tally(header, table.active, out.statistics);
  for (uint64_t i = 0; i < header.l2_entries(); ++i) {
    L2Entry entry = LoadL2(header, bytes, i);
    if (entry.descriptor == 0 && entry.bitmap == 0) continue;
    tally.Add(entry);
    auto where = [&] { return survey.Name(table); };
    auto touch = TouchOf(image, entry, GuestOffset(header, table, i), where, &out.findings);
    if (!touch) continue;
    Outcome::Mark mark = Outcome::kNoMark;
    if (touch->flagged && table.active > 0) {
      mark = touch->copied ? Outcome::kCopiedMark : Outcome::kSharedMark;
    }
    for (uint64_t cluster = touch->first; cluster <= touch->last; ++cluster) {
      out.refs.push_back({cluster, table.total, mark});
    }
  }
}

std::string DataName(const Survey& survey, const TableRef& table, uint64_t guest) {
  std::string name = fmt::format("data of guest {:#x}", guest);
  if (table.owner != 0) name += fmt::format(" of snapshot '{}'", survey.snapshots[table.owner - 1]);
  if (table.total > 1) name += fmt::format(" ({} L1 entries lead to it)", table.total);
  return name;
}

void ExamineTable(const Image& image, const Survey& survey, const TableRef& table, ConstBytes bytes,
                  Outcome& out) {
  const Header& header = image.header;
  for (uint64_t i = 0; i < header.l2_entries(); ++i) {
    L2Entry entry = LoadL2(header, bytes, i);
    if (entry.descriptor == 0) continue;
    uint64_t guest = GuestOffset(header, table, i);
    auto touch = TouchOf(image, entry, guest, {}, nullptr);
    if (!touch) continue;
    for (uint64_t cluster = touch->first; cluster <= touch->last; ++cluster) {
      const RefMap::Page* page = survey.refs.Find(cluster);
      uint64_t bit = RefMap::Bit(cluster);
      if (page == nullptr) continue;
      if (page->suspect & bit) {
        out.owners.Add(cluster, [&] { return DataName(survey, table, guest); });
      }
      if (!touch->flagged || table.active == 0 || !(page->known & bit)) continue;
      if (touch->copied == static_cast<bool>(page->one & bit)) continue;
      out.findings.Add(kCorruption, Remedy::kFlag, [&] {
        return fmt::format(
            "{}: entry {} (guest {:#x}): \"copied\" flag is {}, but the refcount of cluster {:#x} "
            "is {}",
            survey.Name(table), i, guest, touch->copied ? "set" : "clear", image.Offset(cluster),
            page->one & bit    ? "1"
            : page->many & bit ? "more than 1"
                               : "0");
      });
    }
  }
}

}  // namespace

L2Entry LoadL2(const Header& header, ConstBytes table, uint64_t index) {
  uint64_t at = index * header.l2_entry_size();
  L2Entry entry{*LoadAt<be64>(table, at), 0};
  if (header.extended_l2()) entry.bitmap = *LoadAt<be64>(table, at + 8);
  return entry;
}

std::optional<Touch> TouchOf(const Image& image, L2Entry entry, uint64_t guest,
                             const std::function<std::string()>& where, Findings* findings) {
  const Header& header = image.header;
  auto report = [&](Remedy remedy, auto&& text) {
    if (findings == nullptr) return;
    findings->Add(kCorruption, remedy, [&] { return fmt::format("{}: {}", where(), text()); });
  };
  auto decoded = DecodeL2(header, entry, guest);
  bool sound = decoded.has_value();
  if (!sound) report(Remedy::kNone, [&] { return decoded.error().text(); });
  Range host = RawHost(header, entry);
  bool compressed = entry.descriptor & kCompressed, copied = entry.descriptor & kCopied;
  if (compressed && copied && sound) {
    report(Remedy::kFlag, [&] {
      return fmt::format(
          "L2 entry {:#x} of guest offset {:#x}: compressed, with the \"copied\" flag",
          entry.descriptor, guest);
    });
  }
  if (header.has_data_file()) {
    bool allocated = sound && (decoded->kind == ClusterKind::kNormal ||
                               decoded->kind == ClusterKind::kZeroAllocated);
    if (allocated && !copied) {
      report(Remedy::kFlag, [&] {
        return fmt::format(
            "L2 entry {:#x} of guest offset {:#x}: \"copied\" flag is clear, with an "
            "external data file",
            entry.descriptor, guest);
      });
    }
    return std::nullopt;
  }
  if (host.offset == 0 && !compressed) return std::nullopt;
  if (image.PastEnd(host)) {
    if (!sound) return std::nullopt;
    report(Remedy::kNone, [&] {
      return fmt::format(
          "L2 entry {:#x} of guest offset {:#x}: past the end of the file (offset "
          "{:#x}, file size {:#x})",
          entry.descriptor, guest, host.offset, image.size);
    });
    return std::nullopt;
  }
  return Touch{image.Cluster(host.offset), image.Cluster(host.end() - 1), sound && !compressed,
               copied};
}

void CountTables(const Image& image, Survey& survey) {
  TablePass pass(
      image, survey,
      [&](const TableRef& table, ConstBytes bytes, Outcome& out) {
        CountTable(image, survey, table, bytes, out);
      },
      [&](Outcome&& out) {
        for (const Outcome::Ref& ref : out.refs) {
          RefMap::Page& page = survey.refs.Add(ref.cluster, Use::kData, ref.weight);
          if (ref.mark == Outcome::kCopiedMark) page.copied |= RefMap::Bit(ref.cluster);
          if (ref.mark == Outcome::kSharedMark) page.shared |= RefMap::Bit(ref.cluster);
        }
        survey.incomplete |= out.unreadable.count(kError) > 0;
        survey.findings.Take(std::move(out.findings));
        survey.findings.Take(std::move(out.unreadable));
        survey.statistics.allocated += out.statistics.allocated;
        survey.statistics.compressed += out.statistics.compressed;
        survey.statistics.fragmented += out.statistics.fragmented;
      });
  pass.Run();
  if (!survey.refs.overflowed()) return;
  survey.incomplete = true;
  survey.findings.Add(kError, Remedy::kNone, [] {
    return std::string("too many clusters far from each other: not all references were counted");
  });
}

void ExamineTables(const Image& image, Survey& survey, Owners& owners) {
  TablePass pass(
      image, survey,
      [&](const TableRef& table, ConstBytes bytes, Outcome& out) {
        ExamineTable(image, survey, table, bytes, out);
      },
      [&](Outcome&& out) {  // what was unreadable, CountTables has reported
        owners.Take(std::move(out.owners));
        survey.findings.Take(std::move(out.findings));
      });
  pass.Run();
}

}  // namespace platter::qcow2::check
