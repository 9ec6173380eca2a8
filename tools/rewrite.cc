#include "tools/rewrite.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <vector>

#include "cow/create.h"
#include "io/engine/engine.h"
#include "tools/convert_bitmaps.h"

namespace platter {
namespace {

const Fact* FindFact(const Info& info, std::string_view name) {
  auto found = std::ranges::find(info.facts, name, &Fact::name);
  return found == info.facts.end() ? nullptr : &*found;
}

// The create options that would make such an image again.
std::map<std::string, std::string> OptionsOf(const Info& info) {
  std::map<std::string, std::string> options;
  options["cluster_size"] = std::to_string(info.unit);
  auto take = [&](std::string_view fact, const std::string& option) {
    const Fact* found = FindFact(info, fact);
    if (!found) return;
    if (auto* text = std::get_if<std::string>(&found->value)) options[option] = *text;
    if (auto* flag = std::get_if<bool>(&found->value)) options[option] = *flag ? "on" : "off";
    if (auto* number = std::get_if<uint64_t>(&found->value)) {
      options[option] = std::to_string(*number);
    }
  };
  take("compat", "compat");
  take("compression-type", "compression_type");
  take("refcount-bits", "refcount_bits");
  take("lazy-refcounts", "lazy_refcounts");
  take("extended-l2", "extended_l2");
  return options;
}

Result<> CheckCanRewrite(const Info& info) {
  std::string_view what;
  if (!info.snapshots.empty()) what = "snapshots";
  if (info.encrypted) what = "encryption";
  for (const Reference& reference : info.references) {
    if (reference.role == Reference::kData) what = "an external data file";
  }
  if (what.empty()) return {};
  return Fail(Code::kUnsupported, "an image with {} cannot be written anew", what);
}

Result<bool> HoldsPacked(Layer& layer) {
  std::array<Extent, 256> extents;
  for (uint64_t at = 0; at < layer.info().size;) {
    Pin pin = layer.Hold();
    const size_t count = TRY(layer.Map(Range::FromTo(at, layer.info().size), extents));
    for (const Extent& extent : std::span(extents).first(count)) {
      if (extent.packed()) return true;
      at = extent.guest.end();
    }
  }
  return false;
}

Result<NewImageOptions> PlanTarget(const Info& info,
                                   const std::map<std::string, std::string>& options) {
  NewImageOptions target;
  target.format = info.format;
  target.replace = true;
  target.create.size = info.size;
  target.create.options = OptionsOf(info);
  for (const auto& [name, value] : options) target.create.options[name] = value;
  for (const Reference& reference : info.references) {
    if (reference.role == Reference::kParent) target.create.parent = reference;
  }
  auto take = [&](const char* name) {
    auto node = target.create.options.extract(name);
    return node.empty() ? std::nullopt : std::optional(node.mapped());
  };
  auto parent = take("backing_file"), format = take("backing_fmt");
  if (parent && parent->empty()) target.create.parent.reset();
  if (parent && !parent->empty()) target.create.parent = Reference{Reference::kParent, *parent, ""};
  if (format && target.create.parent) target.create.parent->format = *format;
  return target;
}

}  // namespace

Result<> RewriteImage(const std::string& path, const ImageOptions& image,
                      const std::map<std::string, std::string>& options, Console& console) {
  ImageOptions plain = image;
  plain.no_backing = true;
  DiskOptions open = TRY(plain.ToDiskOptions(false));
  // The new image's file holds the lock of the old one until it takes its place.
  open.file.force_share = true;
  std::vector<std::string> warnings;
  auto look = TRY(Disk::Open(path, open, plain.MakeGate(), &warnings));
  TRY(CheckCanRewrite(look->info()));
  NewImageOptions plan = TRY(PlanTarget(look->info(), options));
  plan.create.secret = open.secret;  // of the parents
  struct stat status{};
  if (stat(path.c_str(), &status) != 0) return FailErrno(errno, "'{}'", Printable(path, 4096));

  auto fresh = TRY(NewImage::Create(path, plan, plain.MakeGate(), &warnings));
  look.reset();  // it was open before nobody else could change it
  auto old = TRY(Disk::Open(path, open, plain.MakeGate(), &warnings));
  for (const std::string& warning : warnings) {
    if (!image.quiet) console.Warn(warning);
  }
  // Over its parents: of a unit that is larger than the old ones they have the rest.
  CopyOptions copy;
  copy.skip_parent = plan.create.parent.has_value();
  copy.target_is_zero = !copy.skip_parent;
  copy.compress = TRY(HoldsPacked(old->layer(0)));
  TRY(Copy(old->layer(0), fresh->disk(), {0, old->info().size}, copy));
  TRY(fresh->disk().Flush());
  if (!old->info().bitmaps.empty()) {
    TRY(CopyBitmaps(*old, fresh->disk(), /*skip_broken=*/false, nullptr));
  }
  TRY(fresh->Commit());
  // Best effort: who may not give files away keeps them.
  (void)!chown(path.c_str(), status.st_uid, status.st_gid);
  if (chmod(path.c_str(), status.st_mode & 07777) != 0) {
    return FailErrno(errno, "'{}'", Printable(path, 4096));
  }
  return {};
}

Result<> WriteOutZeros(Layer& layer, bool over_parent) {
  std::array<Extent, 256> extents;
  const std::vector<std::byte> zeros(kMiB);
  const uint64_t size = layer.info().size;
  for (uint64_t at = 0; at < size;) {
    size_t count = 0;
    {
      Pin pin = layer.Hold();
      count = TRY(layer.Map(Range::FromTo(at, size), extents));
    }
    for (const Extent& extent : std::span(extents).first(count)) {
      at = extent.guest.end();
      if (extent.kind != Kind::kZero) continue;
      for (Range left = extent.guest; !left.empty();) {
        if (over_parent) {
          const uint64_t length = std::min<uint64_t>(left.length, zeros.size());
          TRY(Write(layer, left.offset, ConstBytes(zeros).first(length)));
          left = Range::FromTo(left.offset + length, left.end());
        } else {
          const Range done = TRY(layer.Discard(left, Kind::kParent));
          if (done.empty()) break;
          left = Range::FromTo(done.end(), left.end());
        }
      }
    }
  }
  return layer.Flush();
}

}  // namespace platter
