#include "formats/vmdk/vmdk_testing.h"

#include "formats/vmdk/vmdk_check.h"
#include "formats/vmdk/vmdk_create.h"
#include "formats/vmdk/vmdk_layer.h"
#include "io/engine/engine.h"
#include "io/testing/wrapper_store.h"
#include "tests/model/random.h"

namespace platter::vmdk {

namespace {

Result<> CreateIn(Store& store, NamedStores* files, uint64_t size, const Options& options,
                  const Info* parent, const std::string& parent_name) {
  CreateOptions create;
  create.size = size;
  create.options = options;
  create.file_name = "a.vmdk";
  create.files = files;
  if (parent) {
    create.parent = Reference{Reference::kParent, parent_name, "vmdk", {}, {}, {}, {}};
    create.parent_file.emplace();
    create.parent_file->info = *parent;
  }
  return CreateVmdk(store, create);
}

}  // namespace

Result<> TestImage::Create(uint64_t size, const Options& options, const Layer* parent,
                           const std::string& parent_name) {
  return CreateIn(store, &files, size, options, parent ? &parent->info() : nullptr, parent_name);
}

void TestImage::Describe(std::string_view text) {
  (void)store.Resize(0).has_value();
  (void)store.Write(0, AsBytes(text)).has_value();
}

Result<std::unique_ptr<Layer>> TestImage::Open(bool writable, bool fresh) {
  OpenOptions options;
  options.writable = writable;
  options.fresh = fresh;
  options.opener = &files;
  return OpenVmdk(std::make_unique<WrapperStore>(store), options);
}

Result<CheckReport> TestImage::Check(CheckOptions::Repair repair) {
  OpenOptions options;
  options.writable = repair != CheckOptions::kNone;
  options.opener = &files;
  return CheckVmdk(store, options, CheckOptions{repair});
}

std::vector<std::byte> Noise(size_t length, uint64_t seed) {
  std::vector<std::byte> bytes(length);
  model::Random(seed).Fill(Bytes(bytes));
  return bytes;
}

Result<std::vector<std::byte>> Content(Layer& layer) {
  std::vector<std::byte> bytes(layer.info().size);
  TRY(Read(layer, 0, Bytes(bytes)));
  return bytes;
}

std::string Findings(const CheckReport& report) {
  std::string text;
  for (const auto& finding : report.findings) text += finding.text + "\n";
  return text;
}

model::Subject SubjectOf(std::string name, uint64_t size, Options options, bool parent) {
  model::Subject subject;
  subject.name = std::move(name);
  subject.size = size;
  subject.unit = 64 * kKiB;
  subject.create = [=](Store& store) -> Result<> {
    Info info;
    info.format = "vmdk";
    info.identity.version = "0badcafe";
    return CreateIn(store, nullptr, size, options, parent ? &info : nullptr, "parent.vmdk");
  };
  subject.open = [](Store& store) {
    OpenOptions open;
    open.writable = true;
    return OpenVmdk(std::make_unique<WrapperStore>(store), open);
  };
  subject.check = [](Store& store) -> Result<bool> {
    CheckReport report = TRY(CheckVmdk(store, OpenOptions{}, CheckOptions{}));
    if (report.corruptions + report.errors == 0) return true;
    return Fail(Code::kCorrupt, "{}", Findings(report));
  };
  return subject;
}

}  // namespace platter::vmdk
