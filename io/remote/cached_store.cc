#include "io/remote/cached_store.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "io/iov.h"

namespace platter {

namespace {

constexpr uint64_t kBlock = DiskCache::kBlock;
constexpr uint64_t kMostPiece = 4 * kMiB;  // bytes of one request
// Several threads that copy a disk are not exactly one behind the other.
constexpr uint64_t kNear = 8 * kMiB;

// What is fetched ahead has to stay until it is read, beside what is being read.
CacheOptions Fitting(CacheOptions options) {
  options.ahead = std::min(options.ahead, options.memory / 4);
  return options;
}

}  // namespace

Result<std::unique_ptr<Store>> CachedStore::Open(std::unique_ptr<RemoteSource> source,
                                                 const CacheOptions& options) {
  // What a server says; positions beyond fit into no file, and some not into 64 bits.
  if (source->size() > INT64_MAX) {
    return Fail(Code::kUnsupported, "'{}': the server says that it has {} bytes, over 8 EiB",
                source->name(), source->size());
  }
  std::unique_ptr<DiskCache> disk;
  // Without a version nobody could tell whether what was kept is still what the server has.
  if (!options.folder.empty() && !source->version().empty()) {
    disk = TRY(DiskCache::Open(options.folder,
                               {source->name(), source->url(), source->version(), source->size()}));
  }
  return std::unique_ptr<Store>(new CachedStore(std::move(source), options, std::move(disk)));
}

CachedStore::CachedStore(std::unique_ptr<RemoteSource> source, const CacheOptions& options,
                         std::unique_ptr<DiskCache> disk)
    : source_(std::move(source)),
      size_(source_->size()),
      options_(Fitting(options)),
      disk_(std::move(disk)) {}

CachedStore::~CachedStore() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  source_->Stop();
  changed_.NotifyAll();
  threads_.clear();  // waits for them
}

Result<> CachedStore::Read(uint64_t at, std::span<const iovec> into) {
  const uint64_t length = IovLength(into);
  if (!FitsIn(at, length, size_)) {
    return Fail(Code::kCorrupt,
                "'{}': {} bytes at {:#x} reach past the end of the file (size {:#x})", name(),
                length, at, size_);
  }
  for (uint64_t done = 0; done < length;) {
    Range want{at + done, length - done};
    PiecePtr piece = TRY(Get(want));
    Range part = piece->range.Intersect(want);
    auto bytes = std::as_const(piece->data).bytes();
    IovScatter(bytes.subspan(part.offset - piece->range.offset, part.length), into, done);
    done += part.length;
  }
  return {};
}

size_t CachedStore::TryRead(uint64_t at, std::span<const iovec> into) {
  size_t done = 0;
  const uint64_t length = at < size_ ? std::min(IovLength(into), size_ - at) : 0;
  while (done < length) {
    PiecePtr piece;
    {
      std::lock_guard lock(mutex_);
      piece = FindLocked(at + done);
      if (!piece || !piece->ready) break;
      piece->used = ++clock_;
      if (std::exchange(piece->ahead, false)) FetchAheadLocked(piece->range.end());
    }
    Range part = piece->range.Intersect({at + done, length - done});
    auto bytes = std::as_const(piece->data).bytes();
    IovScatter(bytes.subspan(part.offset - piece->range.offset, part.length), into, done);
    done += part.length;
  }
  return done;
}

// The piece that holds want.offset, loaded.
Result<CachedStore::PiecePtr> CachedStore::Get(Range want) {
  std::unique_lock lock(mutex_);
  PiecePtr piece = FindLocked(want.offset);
  if (!piece) {
    piece = AddLocked({want.offset, std::max(want.length, source_->worthwhile())});
    NoteMissLocked(piece->range);
    lock.unlock();
    Load(piece);
    lock.lock();
  } else {
    piece->used = ++clock_;  // before room is made, which takes what was used least recently
    if (std::exchange(piece->ahead, false)) FetchAheadLocked(piece->range.end());
  }
  changed_.Wait(lock, [&] { return piece->ready || piece->failed; });
  if (piece->failed) return std::unexpected(piece->error->Clone());
  return piece;
}

CachedStore::PiecePtr CachedStore::FindLocked(uint64_t at) {
  auto next = pieces_.upper_bound(at);
  if (next == pieces_.begin()) return nullptr;
  PiecePtr piece = std::prev(next)->second;
  return piece->range.Contains(at) ? piece : nullptr;
}

// A piece that starts at the block of wish.offset, where there is none yet, and goes on as far as
// wished for and free.
CachedStore::PiecePtr CachedStore::AddLocked(Range wish) {
  const uint64_t begin = RoundDown(wish.offset, kBlock);
  uint64_t end = std::min(RoundUp(std::min(wish.end(), begin + kMostPiece), kBlock), size_);
  end = std::min(end, begin + kMostPiece);
  auto next = pieces_.upper_bound(begin);
  if (next != pieces_.end()) end = std::min(end, next->first);
  auto piece = std::make_shared<Piece>();
  piece->range = Range::FromTo(begin, end);
  MakeRoomLocked(piece->range.length);
  piece->data = Buffer(piece->range.length);
  held_ += piece->range.length;
  piece->used = ++clock_;
  pieces_[begin] = piece;
  return piece;
}

void CachedStore::NoteMissLocked(Range got) {
  const bool near =
      next_ != UINT64_MAX && got.offset + kNear >= next_ && got.offset <= next_ + kNear;
  window_ = near ? std::min(std::max(window_ * 2, kMiB), options_.ahead) : 0;
  next_ = near ? std::max(next_, got.end()) : got.end();
  if (window_ > 0) FetchAheadLocked(got.end());
}

// Sees to it that what follows `from` is there or on its way.
void CachedStore::FetchAheadLocked(uint64_t from) {
  if (options_.threads == 0 || window_ == 0) return;
  window_ = std::min(window_ * 2, options_.ahead);
  next_ = std::max(next_, from);
  const uint64_t piece_size = std::clamp(source_->worthwhile(), kMiB, kMostPiece);
  const uint64_t end = std::min(from + window_, size_);
  bool added = false;
  for (uint64_t at = from; at < end;) {
    PiecePtr piece = FindLocked(at);
    if (!piece) {
      piece = AddLocked({at, piece_size});
      piece->ahead = true;
      wanted_.push_back(piece);
      added = true;
    }
    at = piece->range.end();
  }
  if (!added) return;
  if (threads_.size() < options_.threads) {
    threads_.emplace_back([this] { RunAhead(); });
  }
  changed_.NotifyAll();
}

// What was read goes first, by when it was used last; what was fetched ahead and not read yet is
// going to be, unless there is so much of it that readers must have gone elsewhere. Readers keep
// what they use alive by themselves.
void CachedStore::MakeRoomLocked(uint64_t bytes) {
  while (held_ + bytes > options_.memory) {
    auto oldest_read = pieces_.end(), oldest_unread = pieces_.end();
    uint64_t unread = 0;
    for (auto it = pieces_.begin(); it != pieces_.end(); ++it) {
      const Piece& piece = *it->second;
      if (piece.ahead) unread += piece.range.length;
      if (!piece.ready) continue;
      auto& oldest = piece.ahead ? oldest_unread : oldest_read;
      if (oldest == pieces_.end() || piece.used < oldest->second->used) oldest = it;
    }
    const bool spare_unread = unread <= options_.memory / 2 && oldest_read != pieces_.end();
    auto victim = spare_unread || oldest_unread == pieces_.end() ? oldest_read : oldest_unread;
    if (victim == pieces_.end()) return;  // all of it is on its way
    held_ -= victim->second->range.length;
    pieces_.erase(victim);
  }
}

// Fetches the piece, whose data nobody else touches until it is ready. What failed is not kept: a
// later read tries again.
void CachedStore::Load(const PiecePtr& piece) {
  Result<> loaded = LoadBytes(*piece);
  std::lock_guard lock(mutex_);
  if (loaded) {
    piece->ready = true;
  } else {
    piece->failed = true;
    piece->error = std::move(loaded.error());
    held_ -= piece->range.length;
    pieces_.erase(piece->range.offset);
  }
  changed_.NotifyAll();
}

// From the disk cache what is there, from the server what is not, in as few requests as that takes.
Result<> CachedStore::LoadBytes(Piece& piece) {
  if (!disk_) return source_->Fetch(piece.range.offset, piece.data.bytes());
  std::vector<Range> missing;
  for (uint64_t at = piece.range.offset; at < piece.range.end(); at += kBlock) {
    Range block = piece.range.Intersect({at, kBlock});
    Bytes into = piece.data.bytes().subspan(at - piece.range.offset, block.length);
    if (disk_->Load(at / kBlock, into)) continue;
    if (!missing.empty() && missing.back().end() == at) {
      missing.back().length += block.length;
    } else {
      missing.push_back(block);
    }
  }
  for (Range range : missing) {
    Bytes into = piece.data.bytes().subspan(range.offset - piece.range.offset, range.length);
    TRY(source_->Fetch(range.offset, into));
    for (uint64_t done = 0; done < into.size(); done += kBlock) {
      disk_->Save((range.offset + done) / kBlock,
                  into.subspan(done, std::min<uint64_t>(kBlock, into.size() - done)));
    }
  }
  return {};
}

void CachedStore::RunAhead() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.Wait(lock, [&] { return stop_ || !wanted_.empty(); });
    // Who waits for a piece learns of it by the error that Fetch gives once it was stopped.
    if (wanted_.empty()) return;
    PiecePtr piece = std::move(wanted_.front());
    wanted_.pop_front();
    lock.unlock();
    Load(piece);
    lock.lock();
  }
}

Result<Store::Run> CachedStore::FindRun(uint64_t at) {
  if (at < size_) return Run{.length = size_ - at, .data = true};
  return Fail(Code::kOutOfRange, "'{}': {:#x} is past the end of the file (size {:#x})", name(), at,
              size_);
}

}  // namespace platter
