// create_overlay PARENT FORMAT OVERLAY: makes a qcow2 image that shows PARENT (relative to
// OVERLAY's directory) and takes all writes, and writes a greeting into its first bytes.
#include <string>
#include <string_view>
#include <vector>

#include "cow/create.h"
#include "io/engine/engine.h"

using namespace platter;

namespace {

Result<> CreateOverlay(const std::string& parent, const std::string& format,
                       const std::string& overlay) {
  NewImageOptions options;
  options.format = "qcow2";
  options.create.parent = Reference{Reference::kParent, parent, format};
  options.size_from_parent = true;

  Gate gate(GatePolicy::FromEnvironment());
  std::vector<std::string> warnings;
  auto image = TRY(NewImage::Create(overlay, options, gate, &warnings));
  for (const std::string& warning : warnings) fmt::print(stderr, "warning: {}\n", warning);

  // Only the overlay changes. Nothing is visible under its name before Commit.
  TRY(Write(image->disk(), 0, AsBytes(std::string_view("written to the overlay"))));
  return image->Commit();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    fmt::print(stderr, "usage: create_overlay PARENT FORMAT OVERLAY\n");
    return 2;
  }
  Result<> created = CreateOverlay(argv[1], argv[2], argv[3]);
  if (created) return 0;
  fmt::print(stderr, "create_overlay: {}\n", created.error().text());
  return 1;
}
