// What is in a file, by looking at it.
//
// Whoever can write an image's content can choose what probing finds: a guest that owns a raw disk
// writes a header of its choice into its first sector. So probing is a convenience for files of
// one's own, never a decision that is made twice: an overlay records its parent's format, and raw
// by guess keeps such a header from being written (formats/raw/head_guard.h).
#include <algorithm>

#include "formats/format.h"
#include "formats/signatures.h"

namespace platter {

namespace {

// The predicate of ProbeResult::refusal.
std::string Refusal(const Signature& signature) {
  constexpr std::string_view kAnyway = "to treat it as raw bytes give -f raw";
  switch (signature.kind) {
    case Signature::kImage:
      return fmt::format("is {}, which is not supported yet; {}", signature.name, kAnyway);
    case Signature::kCompressed:
      return fmt::format("is compressed with {}: decompress it first; {}", signature.name, kAnyway);
    case Signature::kArchive:
      return fmt::format("is an archive, {}: take the disk image out first; {}", signature.name,
                         kAnyway);
    case Signature::kFilesystem:
      return fmt::format("is an {} file system without a partition table, not a disk; {}",
                         signature.name, kAnyway);
  }
  return {};
}

// Null: none is.
const Format* SurestFormat(ConstBytes head, ConstBytes tail, uint64_t size) {
  const Format* surest = nullptr;
  int best = 0;
  for (const Format* format : AllFormats()) {
    int sure = format->probe(head, tail, size);
    if (sure <= best) continue;
    best = sure;
    surest = format;
  }
  return surest;
}

Result<bool> IsIso(Store& store, uint64_t size) {
  std::array<std::byte, 2048> volume;
  if (size < kIsoVolume + volume.size()) return false;
  TRY(store.Read(kIsoVolume, Bytes(volume)));
  return IsIsoVolume(volume);
}

}  // namespace

const Format* ProbeHead(ConstBytes head) { return SurestFormat(head, {}, head.size()); }

Result<ProbeResult> Probe(Store& store) {
  const Ends ends = TRY(ReadEnds(store));
  const auto& [head, tail, size] = ends;

  ProbeResult result;
  result.format = SurestFormat(head, tail, size);
  if (result.format) {
    // The trailer may be the format's own.
    const Signature* trailer = FindTrailer(tail, size);
    if (trailer && result.format->probe({}, tail, size) == 0) {
      result.note = fmt::format(
          "its last bytes are a trailer of {}, which is ignored: a header decides before a "
          "trailer, "
          "and this one says {}",
          trailer->name, result.format->name);
    }
    return result;
  }
  if (const Signature* signature = FindSignature(head, tail, size)) {
    result.refusal = Refusal(*signature);
    if (signature->kind == Signature::kImage) result.refusal_code = Code::kUnsupported;
  } else if (!HasPartitionTable(head) && TRY(IsIso(store, size))) {
    result.refusal = Refusal(kIso);
  }
  return result;
}

}  // namespace platter
