#include "formats/signatures.h"

#include <algorithm>

#include "formats/format.h"

namespace platter {

using namespace std::string_view_literals;

namespace {

struct Magic {
  uint32_t offset;
  std::string_view bytes;
  Signature signature;
};

constexpr Signature Image(std::string_view name) { return {name, Signature::kImage, false}; }
constexpr Signature Packed(std::string_view name) { return {name, Signature::kCompressed, false}; }
constexpr Signature Archive(std::string_view name) { return {name, Signature::kArchive, false}; }

// At the start of a file. The longer of two that could both match comes first.
constexpr Magic kMagics[] = {
    {0, "QFI\xfb\0\0\0\1"sv, Image("qcow (version 1)")},
    {0, "QFI\xfb\0\0\0\2"sv, Image("qcow2")},
    {0, "QFI\xfb\0\0\0\3"sv, Image("qcow2")},
    {0, "QFI\xfb"sv, Image("qcow (of an unknown version)")},
    {0, "KDMV"sv, Image("VMDK")},
    {0, "COWD"sv, Image("VMDK (ESX 2 sparse extent)")},
    {0, "\xbe\xba\xfe\xca\0\0\0\0"sv, Image("VMDK (ESXi space-efficient sparse extent)")},
    {64, "\x7f\x10\xda\xbe"sv, Image("VDI")},
    {0, "vhdxfile"sv, Image("VHDX")},
    {0, "conectix"sv, Image("VHD")},
    {0, "QED\0"sv, Image("QED")},
    {0, "WithoutFreeSpace"sv, Image("Parallels")},
    {0, "WithouFreSpacExt"sv, Image("Parallels")},
    {0, "Bochs Virtual HD Image"sv, Image("Bochs")},
    {0, "#!/bin/sh\n#V2.0 Format\n"sv, Image("cloop")},
    {0, "#!/bin/sh\n#V1.0 Format\n"sv, Image("cloop")},
    {0, "LUKS\xba\xbe"sv, Image("LUKS")},
    {0, "EVF\x09\x0d\x0a\xff\0"sv, Image("EWF (E01)")},
    {0, "\x3a\xff\x26\xed"sv, Image("Android sparse image")},
    {0, "partclone-image"sv, Image("partclone image")},
    {0, "MSWIM\0\0\0"sv, Archive("WIM")},
    {0, "\x1f\x8b\x08"sv, Packed("gzip")},
    {0,
     "\xfd"
     "7zXZ\0"sv,
     Packed("xz")},
    {0, "\x28\xb5\x2f\xfd"sv, Packed("zstd")},
    {0, "\x04\x22\x4d\x18"sv, Packed("lz4")},
    {0, "LZIP\1"sv, Packed("lzip")},
    {0, "PK\3\4"sv, Archive("zip")},
    {0, "7z\xbc\xaf\x27\x1c"sv, Archive("7-Zip")},
    {257, "ustar"sv, Archive("tar")},
};

// bzip2: after "BZh" and the block size comes a block, or the end of an empty stream.
constexpr Signature kBzip2 = Packed("bzip2");
constexpr Signature kVmdkText = Image("VMDK (text descriptor)");
constexpr Signature kVhdFooter{"VHD (fixed size)", Signature::kImage, true};
constexpr Signature kDmgTrailer{"Apple disk image (DMG)", Signature::kImage, true};

bool HasAt(ConstBytes bytes, uint64_t offset, std::string_view magic) {
  return FitsIn(offset, magic.size(), bytes.size()) &&
         AsText(bytes.subspan(offset, magic.size())) == magic;
}

bool IsBzip2(ConstBytes head) {
  return HasAt(head, 0, "BZh") && head.size() > 4 && head[3] >= std::byte{'1'} &&
         head[3] <= std::byte{'9'} &&
         (HasAt(head, 4, "1AY&SY") || HasAt(head, 4, "\x17\x72\x45\x38\x50\x90"));
}

// A descriptor is text: comments and empty lines, the magic comment usually the first of them,
// then "version=N".
bool IsVmdkDescriptor(ConstBytes head) {
  constexpr std::string_view kTitle = "# Disk DescriptorFile";
  std::string_view text = AsText(head);
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  while (!text.empty()) {
    size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
    bool title =
        line.size() == kTitle.size() &&
        std::ranges::equal(line, kTitle, [](char a, char b) { return (a | 0x20) == (b | 0x20); });
    if (title) return true;
    if (line.starts_with("version=")) return line.size() == 9 && line[8] >= '1' && line[8] <= '9';
    if (!line.empty() && line[0] != '#') return false;
  }
  return false;
}

// An OVA is a tar whose first member is the OVF description.
bool IsOva(ConstBytes head) {
  std::string_view name = AsText(head.first(std::min<size_t>(head.size(), 100)));
  return name.substr(0, name.find('\0')).ends_with(".ovf");
}

// XML with the root element of an OVF, whose prefix anybody may choose.
bool IsOvf(ConstBytes head) {
  std::string_view text = AsText(head);
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  if (!text.starts_with('<')) return false;
  for (std::string_view name : {"<Envelope", ":Envelope"}) {
    size_t at = text.find(name);
    if (at != text.npos) return text.find("/ovf/", at) != text.npos;
  }
  return false;
}

}  // namespace

const Signature kOva = Archive("OVA (tar)");
const Signature kOvf = Archive("OVF");
const Signature kIso{"ISO 9660", Signature::kFilesystem, false};

namespace {

const Signature* FindHeader(ConstBytes head) {
  for (const Magic& magic : kMagics) {
    if (!HasAt(head, magic.offset, magic.bytes)) continue;
    return magic.signature.name == "tar" && IsOva(head) ? &kOva : &magic.signature;
  }
  if (IsBzip2(head)) return &kBzip2;
  if (IsVmdkDescriptor(head)) return &kVmdkText;
  if (IsOvf(head)) return &kOvf;
  return nullptr;
}

}  // namespace

const Signature* FindSignature(ConstBytes head, ConstBytes tail, uint64_t size) {
  const Signature* header = FindHeader(head);
  const bool packed = header && header->kind == Signature::kCompressed;
  if (header && !packed) return header;
  // The first block of an Apple disk image may be a whole stream of bzip2 or xz.
  const Signature* trailer = FindTrailer(tail, size);
  if (packed && trailer != &kDmgTrailer) return header;
  return trailer;
}

const Signature* FindTrailer(ConstBytes tail, uint64_t size) {
  // Virtual PC before 2004 wrote footers of 511 bytes.
  if (size >= 511 && tail.size() >= 511) {
    size_t at = tail.size() - 511;
    if (HasAt(tail, at, "conectix")) return &kVhdFooter;
  }
  if (size < 512 || tail.size() < 512) return nullptr;
  if (HasAt(tail, tail.size() - 512, "conectix")) return &kVhdFooter;
  if (HasAt(tail, tail.size() - 512, "koly")) return &kDmgTrailer;
  return nullptr;
}

std::string_view SignatureName(ConstBytes head, ConstBytes tail, uint64_t size) {
  const Signature* found = FindSignature(head, tail, size);
  return found ? found->name : std::string_view();
}

Result<Ends> ReadEnds(Store& store) {
  Ends ends;
  ends.size = TRY(store.Size());
  ends.head.resize(std::min<uint64_t>(ends.size, kHeadBytes));
  ends.tail.resize(std::min<uint64_t>(ends.size, 512));
  TRY(store.Read(0, Bytes(ends.head)));
  TRY(store.Read(ends.size - ends.tail.size(), Bytes(ends.tail)));
  return ends;
}

bool IsIsoVolume(ConstBytes volume) {
  return HasAt(volume, 1, "CD001") && (volume[0] <= std::byte{3} || volume[0] == std::byte{0xff});
}

bool HasPartitionTable(ConstBytes head) {
  if (HasAt(head, 512, "EFI PART")) return true;
  if (HasAt(head, 0, "ER") && HasAt(head, 512, "PM\0\0"sv)) return true;
  if (!HasAt(head, 510, "\x55\xaa")) return false;
  // A boot sector alone has the mark too; a table names the type of a partition.
  for (size_t entry = 446; entry < 510; entry += 16) {
    if (head[entry + 4] != std::byte{0}) return true;
  }
  return false;
}

}  // namespace platter
