// Encryption of qcow2 images: LUKS inside the image, and the legacy AES of old ones.
//
// LUKS ("Full disk encryption header pointer"): the LUKS header lies in clusters of its own; its
// payload is the guest clusters, wherever they are, and the sector that tweaks the cipher is the
// *host* sector in the file that holds them. So the bytes of a cluster depend on where it is put.
//
// AES: no key derivation at all. The passphrase, cut or padded with zeros to 16 bytes, is the key
// of AES-128-CBC (whatever the specification says about 256 bits); the IV is the *guest* sector.
// There is no way to tell a wrong passphrase.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "formats/format.h"
#include "formats/qcow2/qcow2_parse.h"
#include "io/codec/cipher.h"
#include "io/codec/luks.h"
#include "io/info.h"
#include "io/store.h"

namespace platter::qcow2 {

// The cipher of the guest data of `header`'s image in `store`; null if it is not encrypted.
// kRefused without a passphrase, or with a wrong one. Takes as long as the LUKS header asks for.
Result<std::unique_ptr<Cipher>> OpenCipher(const Header& header, Store& store,
                                           const Secret* secret);

// Adds to `info.facts` what the LUKS header says (qemu-img's names), if there is one. Reads its
// first bytes only; needs no passphrase.
Result<> AddLuksFacts(const Header& header, Store& store, Info& info);

// The encrypt.* options of create. Sets header.crypt_method; what LUKS then shall be like.
Result<std::optional<LuksOptions>> PlanEncryption(const CreateOptions& options, Header& header);

// Bytes of a LUKS header before its payload; what FormatLuks1 makes is that long.
uint64_t LuksAreaBytes(const LuksOptions& options);

// The LUKS header of a new image; empty for none. kRefused where a passphrase is missing, also for
// AES, and where the image shall be reproducible: a key must be random.
Result<std::vector<std::byte>> MakeLuksArea(const CreateOptions& options, const Header& header,
                                            const std::optional<LuksOptions>& luks);

}  // namespace platter::qcow2
