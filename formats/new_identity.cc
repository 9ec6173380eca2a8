#include "formats/new_identity.h"

#include <sys/random.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <ctime>

#include "base/check.h"
#include "io/codec/hash.h"

namespace platter {

namespace {

// Everything that makes one new image differ from another, as text.
std::string Fingerprint(const CreateOptions& options, std::string_view purpose) {
  std::string text = fmt::format("{}\n{}\n{}\n", purpose, options.size, options.file_name);
  for (const auto& [name, value] : options.options) text += fmt::format("{}={}\n", name, value);
  if (options.parent) text += options.parent->name + "\n";
  if (options.parent_file) {
    const Identity& parent = options.parent_file->info.identity;
    text += parent.id + "\n" + parent.version + "\n";
  }
  return text;
}

}  // namespace

ImageId MakeImageId(const CreateOptions& options, std::string_view purpose) {
  ImageId id;
  if (options.reproducible) {
    Sha256Digest digest = Sha256::Of(AsBytes(std::string_view(Fingerprint(options, purpose))));
    std::copy_n(digest.begin(), id.size(), id.begin());
  } else {
    CHECK(getrandom(id.data(), id.size(), 0) == static_cast<ssize_t>(id.size()));
  }
  id[6] = (id[6] & std::byte{0x0f}) | std::byte{0x40};
  id[8] = (id[8] & std::byte{0x3f}) | std::byte{0x80};
  return id;
}

int64_t CreationTime(const CreateOptions& options) {
  if (!options.reproducible) return std::time(nullptr);
  const char* epoch = std::getenv("SOURCE_DATE_EPOCH");
  return epoch ? std::strtoll(epoch, nullptr, 10) : 0;
}

std::string IdText(const ImageId& id) {
  std::string hex = Hex(id);
  for (size_t dash : {20, 16, 12, 8}) hex.insert(dash, "-");
  return hex;
}

namespace {
// Between the order of a UUID's bytes and the one in which Microsoft stores them.
ImageId SwapGroups(ImageId id) {
  std::reverse(id.begin(), id.begin() + 4);
  std::reverse(id.begin() + 4, id.begin() + 6);
  std::reverse(id.begin() + 6, id.begin() + 8);
  return id;
}
}  // namespace

std::string GuidText(const ImageId& id) { return IdText(SwapGroups(id)); }

std::optional<ImageId> FromGuidText(std::string_view text) {
  ImageId id;
  std::string hex(text);
  std::erase(hex, '-');
  if (hex.size() != 2 * id.size()) return std::nullopt;
  for (size_t i = 0; i < id.size(); ++i) {
    unsigned value = 0;
    auto [end, error] = std::from_chars(&hex[2 * i], &hex[2 * i] + 2, value, 16);
    if (error != std::errc() || end != &hex[2 * i] + 2) return std::nullopt;
    id[i] = static_cast<std::byte>(value);
  }
  id = SwapGroups(id);
  return GuidText(id) == text ? std::optional(id) : std::nullopt;
}

}  // namespace platter
