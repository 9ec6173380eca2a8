#include "formats/qcow2/qcow2_damage_testing.h"

#include <fmt/format.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string_view>

#include "base/endian.h"
#include "formats/qcow2/qcow2_check.h"

namespace platter::qcow2 {

namespace {

std::vector<std::byte> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  ConstBytes bytes = AsBytes(std::string_view(text));
  return {bytes.begin(), bytes.end()};
}

Header HeaderOf(ConstBytes bytes) {
  auto header = ParseHeader(bytes);
  EXPECT_TRUE(header.has_value()) << header.error().text();
  return header.has_value() ? *header : Header();
}

// The number after "name": in JSON, 0 if it is not there.
uint64_t Field(std::string_view json, const std::string& name) {
  size_t at = json.find("\"" + name + "\": ");
  if (at == json.npos) return 0;
  return std::strtoull(json.data() + at + name.size() + 4, nullptr, 10);
}

}  // namespace

Patient::Patient(std::vector<std::byte> bytes)
    : bytes_(std::move(bytes)), header_(HeaderOf(bytes_)) {}

uint64_t Patient::Get64(uint64_t at) const { return LoadAt<be64>(bytes_, at).value(); }

void Patient::Set64(uint64_t at, uint64_t value) { StoreAt(bytes_, at, be64(value)); }

uint64_t Patient::L2Entry(uint64_t index) const {
  return (Get64(L1Entry(0)) & kOffsetMask) + index * header_.l2_entry_size();
}

uint64_t Patient::Refcount(uint64_t cluster) const {
  ConstBytes block = ConstBytes(bytes_).subspan(Get64(RefcountTableEntry(0)));
  return LoadRefcount(block, header_.refcount_order, cluster);
}

void Patient::SetRefcount(uint64_t cluster, uint64_t value) {
  uint64_t block = Get64(RefcountTableEntry(0));
  // An earlier damage may have made the table name a block that is not there.
  if (!FitsIn(block, header_.cluster_size(), bytes_.size())) return;
  StoreRefcount(Bytes(bytes_).subspan(block), header_.refcount_order, cluster, value);
}

int StatusOf(const CheckReport& report) {
  return report.errors ? 1 : report.corruptions ? 2 : report.leaks ? 3 : 0;
}

std::string Text(const CheckReport& report) {
  std::string text;
  for (const CheckReport::Finding& finding : report.findings) {
    text += finding.text + (finding.fixed ? " [fixed]\n" : "\n");
  }
  return text;
}

void DamageTest::Make(const std::string& name, const std::string& options, const std::string& size,
                      const std::vector<std::string>& commands) {
  std::string shell = fmt::format("rm -f {0} && qemu-img create -q -f qcow2 {1} {0} {2}",
                                  Path(name), options.empty() ? "" : "-o " + options, size);
  if (!commands.empty()) {
    shell += " && qemu-io -f qcow2";
    for (const std::string& command : commands) shell += " -c '" + command + "'";
    shell += " " + Path(name);
  }
  Outcome made = Shell(shell);
  ASSERT_EQ(made.exit_code, 0) << shell << "\n" << made.output;
}

Patient DamageTest::Load(const std::string& name) { return Patient(ReadFile(Path(name))); }

void DamageTest::Save(const std::string& name, Patient& patient) {
  std::ofstream file(Path(name), std::ios::binary | std::ios::trunc);
  std::string_view text = AsText(patient.bytes());
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
}

CheckReport DamageTest::Check(const std::string& name, CheckOptions::Repair repair) {
  auto store = OpenFile(name);
  if (store == nullptr) return {};
  auto report = CheckQcow2(*store, {}, {.repair = repair});
  EXPECT_TRUE(report.has_value()) << report.error().text();
  return report.has_value() ? std::move(*report) : CheckReport();
}

Verdict DamageTest::Judge(const std::string& name) {
  Outcome run =
      Shell(fmt::format("qemu-img check --output json -f qcow2 {} 2>/dev/null", Path(name)));
  Verdict verdict;
  verdict.status = run.exit_code;
  verdict.leaks = Field(run.output, "leaks");
  verdict.corruptions = Field(run.output, "corruptions");
  verdict.errors = Field(run.output, "check-errors");
  verdict.image_end = Field(run.output, "image-end-offset");
  verdict.total = Field(run.output, "total-clusters");
  verdict.allocated = Field(run.output, "allocated-clusters");
  verdict.compressed = Field(run.output, "compressed-clusters");
  verdict.fragmented = Field(run.output, "fragmented-clusters");
  return verdict;
}

std::string DamageTest::Content(const std::string& name) {
  return Shell(fmt::format("rm -f {1} && qemu-img convert -f qcow2 -O raw {0} {1} 2>/dev/null && "
                           "sha256sum < {1}",
                           Path(name), Path("content.raw")))
      .output;
}

}  // namespace platter::qcow2
