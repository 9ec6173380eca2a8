// Reading the log: what a writer promised to change and maybe did not come to.
//
// The log is a ring of 4 KiB sectors. An entry says what some 4 KiB pages of the file are to hold;
// entries that follow one another, numbered without a gap, are a sequence. The active one is that
// whose last entry (the head) has the highest number of all, and which holds the entry that the
// head names as its tail. Replaying it from tail to head gives the state that was flushed last.
//
// An entry whose checksum is wrong was torn by a crash: it is not there. One whose checksum is
// right and which contradicts itself was written by someone who did not know better, and is an
// error where nothing else can be replayed. A log without any entry of its own is empty: the crash
// came before the first one, and nothing had been changed.
//
// Source: [MS-VHDX] sections 2.3.1 to 2.3.3.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "base/result.h"
#include "formats/vhdx/vhdx_parse.h"
#include "io/read_only_store.h"

namespace platter::vhdx {

// The active sequence, tail first.
struct LogSequence {
  struct Placed {
    uint64_t at;  // bytes from the log's start
    LogEntry entry;
  };
  std::vector<Placed> entries;
  const LogEntry& head() const { return entries.back().entry; }
};

// What header.log holds to be replayed; nothing if it is empty. kCorrupt also for a file that was
// cut since the log was written, and kUnsupported for a log of more than 1 GiB.
Result<std::optional<LogSequence>> FindSequence(Store& file, const Header& header);

// What a sequence changes, later entries over earlier ones: ranges of the file and where in the log
// their bytes are, not the bytes. At most kMostChanges of them.
class LogChanges {
 public:
  static constexpr size_t kMostChanges = 300'000;

  static Result<LogChanges> Load(Store& file, const Header& header, const LogSequence& sequence);

  // Bytes of the file once it is replayed.
  uint64_t size() const { return size_; }

  // Writes everything to the file that holds the log. Ends with Sync.
  Result<> Apply(Store& file) const;

  // `into` has the bytes of the file from `at` on: puts those that are changed over them.
  Result<> Patch(Store& file, uint64_t at, Bytes into) const;

  // The first changed range that ends after `at`; empty if there is none.
  Range Next(uint64_t at) const;

 private:
  struct Piece {
    uint64_t end;  // in the file
    LogChange change;
    uint64_t sector;  // in the file, where the data sector is
  };

  Result<> AddEntry(Store& file, const LogSequence::Placed& placed);
  void Insert(uint64_t begin, const Piece& piece);
  Result<> CheckTarget(Range target) const;
  Result<> ReadPage(Store& file, const Piece& piece, Bytes into) const;

  Range log_;
  uint64_t size_ = 0;
  std::map<uint64_t, Piece> pieces_;  // by where they begin in the file; disjoint
};

// A file as it reads once its log is replayed, without changing it. Read-only.
class ReplayedStore final : public ReadOnlyStore {
 public:
  // `file` outlives the store.
  ReplayedStore(Store& file, LogChanges changes);

  // Writes everything to the file itself.
  Result<> Apply() { return changes_.Apply(file_); }

  Caps caps() const override;
  const std::string& name() const override { return file_.name(); }
  Result<uint64_t> Size() const override { return size_; }
  using Store::Read;
  Result<> Read(uint64_t at, std::span<const iovec> into) override;
  Result<Run> FindRun(uint64_t at) override;

 private:
  std::unexpected<Error> Refused() const override {
    return Fail(Code::kReadOnly, "'{}': opened for reading", name());
  }
  Result<> ReadSpan(uint64_t at, Bytes into);

  Store& file_;
  const LogChanges changes_;
  const uint64_t file_size_, size_;
};

}  // namespace platter::vhdx
