// Changing what an image is, where it lies: version, width of refcounts, lazy refcounts, the parent
// that it names, and the passphrases that open it.
#pragma once

#include "formats/in_place.h"

namespace platter::qcow2 {

inline constexpr OptionHelp kAmendOptions[] = {
    {"backing_file", "name of the parent; empty: none"},
    {"backing_fmt", "format of the parent"},
    {"compat", "version: 0.10 (or v2), 1.1 (or v3)"},
    {"encrypt.iter-time", "LUKS: milliseconds that unlocking by the new slot shall take (2000)"},
    {"encrypt.keyslot", "LUKS: number of the key slot, 0 to 7"},
    {"encrypt.new-secret", "accepted for qemu-img's sake; the passphrase comes from --new-secret"},
    {"encrypt.old-secret", "accepted for qemu-img's sake; the passphrase comes from --old-secret"},
    {"encrypt.state", "LUKS: active adds a key slot, inactive erases one"},
    {"lazy_refcounts", "postpone refcount updates: on, off"},
    {"refcount_bits", "width of a reference count: 1, 2, 4, 8, 16, 32, 64"},
};

// See InPlace::amend. All but the key slots happens at one moment, the write of the header's first
// sector. Refused (kCorrupt) where a check finds more than leaks. Version 2 has no zero clusters:
// an image that holds some is kUnsupported, and whoever asks writes zeros first.
Result<> AmendQcow2(Store& store, const OpenOptions& open, const AmendOptions& amend);

}  // namespace platter::qcow2
