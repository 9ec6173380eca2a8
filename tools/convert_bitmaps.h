// The bitmaps of convert and backup.
#pragma once

#include <string>

#include "io/layer.h"
#include "tools/console.h"

namespace platter {

// Before a copy that is going to end with CopyBitmaps: kUnsupported where `from` or `to` (null: not
// there yet) has none, kRefused for a bitmap that is not to be trusted, unless those are skipped.
Result<> CheckBitmaps(Layer& from, Layer* to, bool skip_broken);

// Gives `to` the bitmaps that `from` has, as they are and enabled as they are; `to` is written no
// more after it. Broken ones, if skipped, are told to `console` (null: not).
Result<> CopyBitmaps(Layer& from, Layer& to, bool skip_broken, Console* console);

// Whether bitmap `name` can say what an incremental backup has to hold: kRefused where it is there,
// and was not told of every write.
Result<> CheckSince(const Layer& disk, const std::string& name);

// From now on `name` says what was written since: it is made, or cleared where it is there already.
Result<> RestartBitmap(Layer& disk, const std::string& name);

}  // namespace platter
