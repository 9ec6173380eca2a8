// Encrypted images, against QEMU in both directions.
#include "formats/qcow2/qcow2_crypto.h"

#include <algorithm>
#include <string>
#include <vector>

#include "formats/qcow2/qcow2_create.h"
#include "formats/qcow2/qcow2_info.h"
#include "formats/qcow2/qcow2_testing.h"
#include "io/memory_store.h"

namespace platter::qcow2 {
namespace {

const Secret& Passphrase() {
  static const Secret secret{AsBytes(std::string_view("corpus"))};
  return secret;
}

class Qcow2Crypto : public QemuTest {
 protected:
  // qemu-img and qemu-io with the passphrase as secret "s".
  Outcome QemuCreate(const std::string& options, const std::string& size) {
    return Shell(
        "qemu-img create -q -f qcow2 --object secret,id=s,data=corpus -o encrypt.key-secret=s," +
        options + " " + Path("image") + " " + size);
  }
  Outcome QemuIo(const std::string& commands, const std::string& passphrase = "corpus") {
    return Shell("qemu-io --object secret,id=s,data=" + passphrase +
                 " --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=" + Path("image") +
                 " " + commands);
  }
};

Header ReadHeader(Store& store) {
  std::vector<std::byte> head(std::min<uint64_t>(store.Size().value(), kMaxHeaderBytes));
  EXPECT_TRUE(store.Read(0, Bytes(head)).has_value());
  auto header = ParseHeader(head);
  EXPECT_TRUE(header.has_value()) << header.error().text();
  return header.value_or(Header());
}

// Where the cluster of guest offset `guest` is.
uint64_t HostOf(Store& store, const Header& header, uint64_t guest) {
  be64 l1, l2;
  EXPECT_TRUE(store
                  .Read(header.l1_offset + guest / header.l2_span() * 8,
                        std::as_writable_bytes(std::span(&l1, 1)))
                  .has_value());
  uint64_t table = DecodeL1(header, l1, 0).value();
  uint64_t index = guest / header.cluster_size() % header.l2_entries();
  EXPECT_TRUE(store.Read(table + index * 8, std::as_writable_bytes(std::span(&l2, 1))).has_value());
  auto cluster = DecodeL2(header, {l2, 0}, guest);
  EXPECT_TRUE(cluster.has_value() && cluster->kind == ClusterKind::kNormal);
  return cluster.value_or(Cluster()).host;
}

// What QEMU wrote as `value` at guest offset `guest`, our cipher decrypts to it.
void ExpectDecrypts(Store& image, Store& data, uint64_t guest, std::byte value) {
  Header header = ReadHeader(image);
  auto cipher = OpenCipher(header, image, &Passphrase());
  ASSERT_TRUE(cipher.has_value()) << cipher.error().text();
  ASSERT_NE(*cipher, nullptr);
  uint64_t host = HostOf(image, header, guest);
  std::vector<std::byte> bytes(4096);
  ASSERT_TRUE(data.Read(host, Bytes(bytes)).has_value());
  EXPECT_TRUE(std::ranges::any_of(bytes, [&](std::byte b) { return b != value; }))
      << "not encrypted";
  uint64_t first = ((*cipher)->tweak() == Cipher::Tweak::kHost ? host : guest) / Cipher::kSector;
  ASSERT_TRUE((*cipher)->Decrypt(first, bytes).has_value());
  EXPECT_TRUE(std::ranges::all_of(bytes, [&](std::byte b) { return b == value; }));
}

TEST_F(Qcow2Crypto, ReadsWhatQemuWrote) {
  for (const char* options :
       {"encryption=on", "encrypt.format=aes,compat=0.10",
        "encrypt.format=luks,encrypt.iter-time=10",
        "encrypt.format=luks,encrypt.iter-time=10,cluster_size=4k,compat=0.10",
        "encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,"
        "encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,"
        "encrypt.hash-alg=sha1"}) {
    Outcome made = QemuCreate(options, "8M");
    ASSERT_EQ(made.exit_code, 0) << options << made.output;
    // The second cluster is written first, so that guest and host offsets differ.
    Outcome io = QemuIo("-c 'write -P 0x5a 3M 64k' -c 'write -P 0xa5 1M 64k'");
    ASSERT_EQ(io.exit_code, 0) << options << io.output;
    auto image = OpenFile("image");
    ExpectDecrypts(*image, *image, kMiB, std::byte{0xa5});
    ExpectDecrypts(*image, *image, 3 * kMiB, std::byte{0x5a});
  }
}

TEST_F(Qcow2Crypto, ReadsWhatQemuWroteToADataFile) {
  Outcome made =
      QemuCreate("encrypt.format=luks,encrypt.iter-time=10,data_file=" + Path("data"), "8M");
  ASSERT_EQ(made.exit_code, 0) << made.output;
  Outcome io = QemuIo("-c 'write -P 0xa5 1M 64k'");
  ASSERT_EQ(io.exit_code, 0) << io.output;
  auto image = OpenFile("image"), data = OpenFile("data");
  ExpectDecrypts(*image, *data, kMiB, std::byte{0xa5});
}

TEST_F(Qcow2Crypto, LongPassphrasesOfAesAreCut) {
  std::string passphrase = "0123456789abcdefXYZ";
  ASSERT_EQ(Shell("qemu-img create -q -f qcow2 --object secret,id=s,data=" + passphrase +
                  " -o encrypt.format=aes,encrypt.key-secret=s " + Path("image") + " 1M")
                .exit_code,
            0);
  ASSERT_EQ(QemuIo("-c 'write -P 0x33 0 64k'", passphrase).exit_code, 0);
  auto image = OpenFile("image");
  Header header = ReadHeader(*image);
  Secret cut{AsBytes(std::string_view(passphrase).substr(0, 16))};
  auto cipher = OpenCipher(header, *image, &cut);
  ASSERT_TRUE(cipher.has_value());
  std::vector<std::byte> bytes(512);
  ASSERT_TRUE(image->Read(HostOf(*image, header, 0), Bytes(bytes)).has_value());
  ASSERT_TRUE((*cipher)->Decrypt(0, bytes).has_value());
  EXPECT_EQ(bytes[100], std::byte{0x33});
}

TEST_F(Qcow2Crypto, QemuUsesWhatWeCreate) {
  for (const char* options :
       {"encryption=on", "encrypt.format=aes,compat=0.10", "encrypt.format=luks",
        "encrypt.format=luks,compat=0.10,cluster_size=512",
        "encrypt.format=luks,encrypt.cipher-alg=aes-128",
        "encrypt.format=luks,encrypt.cipher-alg=aes-256,encrypt.cipher-mode=cbc,encrypt.ivgen-alg="
        "plain",
        "encrypt.format=luks,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-"
        "alg=sha256",
        "encrypt.format=luks,encrypt.hash-alg=sha512", "encrypt.format=luks,preallocation=metadata",
        "encrypt.format=luks,preallocation=falloc,extended_l2=on",
        "encrypt.format=aes,preallocation=full",
        "encrypt.format=luks,refcount_bits=1,cluster_size=2M"}) {
    auto parsed = OptionsOf(options);
    if (parsed["encrypt.format"] == "luks") parsed["encrypt.iter-time"] = "5";
    if (parsed["encrypt.format"].empty()) parsed.erase("encrypt.format");
    ASSERT_NO_FATAL_FAILURE(Create("image", 4 * kMiB, parsed, &Passphrase()));
    Outcome io = QemuIo(
        "-c 'read -P 0 0 4M' -c 'write -P 7 100k 1M' -c 'read -P 7 100k 1M' -c 'read -P 0 0 100k' "
        "-c 'read -P 0 1200k 1M'");
    EXPECT_EQ(io.exit_code, 0) << options << io.output;
    EXPECT_EQ(io.output.find("ailed"), std::string::npos) << options << io.output;
    Outcome check = Shell(
        "qemu-img check --object secret,id=s,data=corpus --image-opts "
        "driver=qcow2,encrypt.key-secret=s,file.filename=" +
        Path("image"));
    EXPECT_EQ(check.exit_code, 0) << options << check.output;
  }
}

TEST_F(Qcow2Crypto, AreaHasThePlannedLength) {
  for (uint32_t bytes : {16u, 24u, 32u, 64u}) {
    LuksOptions options;
    options.mode = bytes == 64 ? Cipher::Mode::kXts : Cipher::Mode::kCbc;
    options.key_bytes = bytes;
    options.iterations = 1000;
    auto made = FormatLuks1(options, Passphrase().bytes());
    ASSERT_TRUE(made.has_value()) << made.error().text();
    EXPECT_EQ(made->area.size(), LuksAreaBytes(options)) << bytes;
  }
}

TEST_F(Qcow2Crypto, Passphrases) {
  ASSERT_NO_FATAL_FAILURE(
      Create("image", kMiB, OptionsOf("encrypt.format=luks,encrypt.iter-time=5"), &Passphrase()));
  auto image = OpenFile("image");
  Header header = ReadHeader(*image);
  auto missing = OpenCipher(header, *image, nullptr);
  ASSERT_FALSE(missing.has_value());
  EXPECT_EQ(missing.error().code(), Code::kRefused);
  EXPECT_NE(missing.error().text().find("is encrypted: give the passphrase with --secret"),
            std::string::npos);
  Secret wrong{AsBytes(std::string_view("corpse"))};
  auto refused = OpenCipher(header, *image, &wrong);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), Code::kRefused) << refused.error().text();
  EXPECT_TRUE(OpenCipher(header, *image, &Passphrase()).has_value());
  Header plain;
  EXPECT_EQ(OpenCipher(plain, *image, nullptr).value(), nullptr);
}

TEST_F(Qcow2Crypto, DamagedLuksHeaders) {
  ASSERT_NO_FATAL_FAILURE(
      Create("image", kMiB, OptionsOf("encrypt.format=luks,encrypt.iter-time=5"), &Passphrase()));
  auto image = OpenFile("image");
  Header header = ReadHeader(*image);
  Header moved = header;
  moved.crypto->offset = uint64_t{1} << 40;  // past the end of the file
  EXPECT_FALSE(OpenCipher(moved, *image, &Passphrase()).has_value());
  moved = header;
  moved.crypto->length = 100;
  EXPECT_FALSE(OpenCipher(moved, *image, &Passphrase()).has_value());
  Info info;
  EXPECT_FALSE(AddLuksFacts(moved, *image, info).has_value());
}

const Fact* Find(const Facts& facts, std::string_view name) {
  auto found = std::ranges::find(facts, name, &Fact::name);
  return found == facts.end() ? nullptr : &*found;
}

TEST_F(Qcow2Crypto, Facts) {
  ASSERT_NO_FATAL_FAILURE(
      Create("image", kMiB, OptionsOf("encrypt.format=luks,encrypt.iter-time=5"), &Passphrase()));
  auto image = OpenFile("image");
  Header header = ReadHeader(*image);
  auto info = MakeInfo(header, {}, {});
  ASSERT_TRUE(info.has_value());
  EXPECT_TRUE(info->encrypted);
  EXPECT_FALSE(info->compressed_units);
  ASSERT_TRUE(AddLuksFacts(header, *image, *info).has_value());
  const Fact* encrypt = Find(info->facts, "encrypt");
  ASSERT_NE(encrypt, nullptr);
  const auto& facts = std::get<Facts>(encrypt->value);
  image.reset();  // and with it our lock
  std::string qemu = Shell("qemu-img info --output json " + Path("image")).output;
  for (const char* name :
       {"format", "cipher-alg", "cipher-mode", "ivgen-alg", "hash-alg", "uuid"}) {
    const Fact* fact = Find(facts, name);
    ASSERT_NE(fact, nullptr) << name;
    EXPECT_NE(qemu.find(fmt::format("\"{}\": \"{}\"", name, std::get<std::string>(fact->value))),
              std::string::npos)
        << name << qemu;
  }
  EXPECT_NE(qemu.find(fmt::format("\"payload-offset\": {}",
                                  std::get<uint64_t>(Find(facts, "payload-offset")->value))),
            std::string::npos);
}

TEST(Qcow2CryptoRefuses, Options) {
  struct Case {
    const char* options;
    const char* part;
    Code code = Code::kUnsupported;
    bool secret = true;
  };
  for (const Case& c : {
           Case{"encrypt.format=luks,encryption=on", "give one of them"},
           Case{"encrypt.format=des", "des"},
           Case{"encrypt.cipher-alg=aes-128", "needs encrypt.format=luks"},
           Case{"encryption=on,encrypt.iter-time=5", "needs encrypt.format=luks"},
           Case{"encrypt.format=luks,encrypt.cipher-alg=aes-192", "aes-192"},
           Case{"encrypt.format=luks,encrypt.cipher-alg=twofish-128", "twofish"},
           Case{"encrypt.format=luks,encrypt.cipher-mode=ctr", "ctr"},
           Case{"encrypt.format=luks,encrypt.ivgen-hash-alg=sha256",
                "needs encrypt.ivgen-alg=essiv"},
           Case{"encrypt.format=luks,encrypt.iter-time=0", "iter-time"},
           Case{"encrypt.format=luks,encrypt.iter-time=999999", "iter-time"},
           Case{"encrypt.format=luks,compat=0.10,preallocation=metadata", "needs compat=1.1"},
           Case{"encrypt.format=luks", "passphrase", Code::kRefused, false},
           Case{"encrypt.format=aes", "passphrase", Code::kRefused, false},
       }) {
    MemoryStore store;
    CreateOptions create;
    create.size = kMiB;
    create.options = OptionsOf(c.options);
    create.secret = c.secret ? &Passphrase() : nullptr;
    auto created = CreateQcow2(store, create);
    ASSERT_FALSE(created.has_value()) << c.options;
    EXPECT_EQ(created.error().code(), c.code) << created.error().text();
    EXPECT_NE(created.error().text().find(c.part), std::string::npos) << created.error().text();
  }
}

TEST(Qcow2CryptoRefuses, ReproducibleKeys) {
  MemoryStore store;
  CreateOptions create;
  create.size = kMiB;
  create.secret = &Passphrase();
  create.reproducible = true;
  create.options = OptionsOf("encrypt.format=luks");
  auto created = CreateQcow2(store, create);
  ASSERT_FALSE(created.has_value());
  EXPECT_EQ(created.error().code(), Code::kRefused);
  EXPECT_NE(created.error().text().find("its key is random"), std::string::npos);
  create.options = OptionsOf("encrypt.format=aes");  // its key is the passphrase
  EXPECT_TRUE(CreateQcow2(store, create).has_value());
}

}  // namespace
}  // namespace platter::qcow2
