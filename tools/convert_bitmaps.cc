#include "tools/convert_bitmaps.h"

#include <algorithm>

#include "base/bytes.h"
#include "io/bitmapper.h"

namespace platter {

Result<> CheckBitmaps(Layer& from, Layer* to, bool skip_broken) {
  for (Layer* layer : {&from, to}) {
    if (layer && !layer->bitmapper()) {
      return Fail(Code::kUnsupported, "--bitmaps: {} images hold no bitmaps", layer->info().format);
    }
  }
  for (const BitmapInfo& bitmap : from.info().bitmaps) {
    if (!bitmap.in_use || skip_broken) continue;
    return Fail(Code::kRefused,
                "bitmap '{}' is in use, by another program or by one that was interrupted, and "
                "may lack writes: remove it, or leave it out with --skip-broken-bitmaps",
                Printable(bitmap.name));
  }
  return {};
}

Result<> CopyBitmaps(Layer& from, Layer& to, bool skip_broken, Console* console) {
  TRY(CheckBitmaps(from, &to, skip_broken));
  Bitmapper& target = *to.bitmapper();
  // Made without being enabled, so that each is whole when it begins to count.
  for (const BitmapInfo& bitmap : from.info().bitmaps) {
    if (bitmap.in_use) {
      if (console) {
        console->Warn(fmt::format("bitmap '{}' is in use and left out", Printable(bitmap.name)));
      }
      continue;
    }
    TRY(target.AddBitmap(
        {.name = bitmap.name, .granularity = bitmap.granularity, .enabled = false}));
    TRY(target.MergeBitmap(bitmap.name, *from.bitmapper(), bitmap.name));
    if (bitmap.enabled) TRY(target.EnableBitmap(bitmap.name, true));
  }
  return {};
}

Result<> CheckSince(const Layer& disk, const std::string& name) {
  const auto& all = disk.info().bitmaps;
  auto there = std::ranges::find(all, name, &BitmapInfo::name);
  if (there == all.end() || there->enabled) return {};  // who reads it says what is wrong else
  return Fail(Code::kRefused,
              "bitmap '{}' is disabled, and lacks what was written since: make a full backup, or "
              "enable it if nothing was",
              Printable(name));
}

Result<> RestartBitmap(Layer& disk, const std::string& name) {
  Bitmapper* bitmaps = disk.bitmapper();
  if (!bitmaps) {
    return Fail(Code::kUnsupported, "{} images hold no bitmaps", disk.info().format);
  }
  const auto& all = disk.info().bitmaps;
  auto there = std::ranges::find(all, name, &BitmapInfo::name);
  if (there == all.end()) return bitmaps->AddBitmap({.name = name});
  // A crash between the two leaves a bitmap that says too much, and none that misses writes.
  TRY(bitmaps->EnableBitmap(name, true));
  return bitmaps->ClearBitmap(name);
}

}  // namespace platter
