// Arbitrary text as an OVF description and as a manifest.
#include <cstdlib>

#include "base/bytes.h"
#include "cow/ovf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  if (auto ovf = ParseOvf(text); ovf.has_value()) {
    for (const OvfFile& file : ovf->files) {
      if (file.href.empty() || ovf->FindFile(file.id) == nullptr) abort();
    }
  }
  if (auto entries = ParseManifest(text); entries.has_value()) {
    for (const ManifestEntry& entry : *entries) {
      if (entry.digest.size() < 40) abort();
    }
  }
  return 0;
}
