// Who gets in with TLS, and who does not: certificates and keys made here, clients of libnbd and
// QEMU (GnuTLS), and of python (OpenSSL).
#include <arpa/inet.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/interop/served.h"

namespace platter {
namespace {

using testing::HasSubstr;
using testing_support::MustRun;
using testing_support::MustRunPython;
using testing_support::Served;
using testing_support::Shell;
using testing_support::TempFolder;

int FreePort() {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  bind(fd, reinterpret_cast<sockaddr*>(&address), size);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(fd);
  return ntohs(address.sin_port);
}

class NbdTlsTest : public testing::Test {
 protected:
  void SetUp() override {
    MustRun("qemu-img create -q -f qcow2 " + File("disk.qcow2") + " 16M");
    MakeAuthority("ca");
    MakeAuthority("other-ca");
    MakeCertificate("pki", "server", "localhost", "ca");
  }

  std::string File(const std::string& name) const { return folder_.File(name); }

  void MakeAuthority(const std::string& name) {
    MustRun(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 10 "
        "-subj '/CN=the " +
        name + "' -keyout " + File(name + "-key.pem") + " -out " + File(name + ".pem"));
  }

  // FOLDER/{WHO-cert,WHO-key}.pem for `subject`, signed by `authority`, and FOLDER/ca-cert.pem of
  // `trusted` (the same authority, if not given).
  std::string MakeCertificate(const std::string& folder, const std::string& who,
                              const std::string& subject, const std::string& authority,
                              std::string trusted = "", const std::string& dates = "-days 5") {
    if (trusted.empty()) trusted = authority;
    const std::string path = File(folder);
    std::filesystem::create_directories(path);
    const std::string stem = path + "/" + who;
    MustRun("openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/O=Example/CN=" +
            subject + "' -addext 'subjectAltName=DNS:" + subject + "' -keyout " + stem +
            "-key.pem -out " + stem + ".csr && openssl x509 -req -copy_extensions copy -in " +
            stem + ".csr -CA " + File(authority + ".pem") + " -CAkey " +
            File(authority + "-key.pem") + " " + dates + " -out " + stem + "-cert.pem && cp " +
            File(trusted + ".pem") + " " + path + "/ca-cert.pem");
    return path;
  }

  std::string Start(const std::string& options) {
    port_ = FreePort();
    served_ = std::make_unique<Served>(
        folder_, fmt::format("--listen 127.0.0.1:{} {} {}", port_, options, File("disk.qcow2")));
    return served_->Log();
  }

  // What nbdinfo says with the certificates in `folder`, at `host`.
  testing_support::Outcome Connect(const std::string& folder) {
    return Shell(fmt::format("nbdinfo --size 'nbds://localhost:{}/?tls-certificates={}' 2>&1",
                             port_, folder));
  }
  void ExpectIn(const testing_support::Outcome& outcome) {
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output << served_->Log();
    EXPECT_EQ(outcome.output, "16777216\n");
  }
  void ExpectOut(const testing_support::Outcome& outcome) {
    EXPECT_NE(outcome.exit_code, 0) << outcome.output;
  }
  // Whatever happened, clients that are good still get in.
  testing_support::Outcome ConnectPlain() {
    return Shell(fmt::format("nbdinfo --size nbd://127.0.0.1:{}/ 2>&1", port_));
  }

  TempFolder folder_;
  int port_ = 0;
  std::unique_ptr<Served> served_;
};

TEST_F(NbdTlsTest, RequiredTlsIsRequired) {
  Start("--tls-certificates " + File("pki"));
  const std::string good = MakeCertificate("good", "client", "someone", "ca");
  ExpectIn(Connect(good));
  auto plain = ConnectPlain();
  ExpectOut(plain);
  EXPECT_THAT(plain.output, HasSubstr("TLS"));
  MustRun(
      fmt::format("qemu-img info --object tls-creds-x509,id=t,endpoint=client,dir={} "
                  "--image-opts driver=nbd,host=localhost,port={},export=disk,tls-creds=t",
                  good, port_));
  ExpectOut(Shell(fmt::format("qemu-img info nbd://127.0.0.1:{}/disk", port_)));
  MustRun(fmt::format("nbdcopy 'nbds://localhost:{}/?tls-certificates={}' null:", port_, good));
}

TEST_F(NbdTlsTest, OfferedTlsMayBeDoneWithout) {
  Start("--tls on --tls-certificates " + File("pki"));
  ExpectIn(Connect(MakeCertificate("good", "client", "someone", "ca")));
  EXPECT_EQ(ConnectPlain().exit_code, 0);
  served_->Stop();
  Start("");
  EXPECT_EQ(ConnectPlain().exit_code, 0);
  ExpectOut(Connect(File("good")));
}

TEST_F(NbdTlsTest, ClientsSeeThroughAWrongServer) {
  Start("--tls-certificates " + File("pki"));
  // Another authority is trusted.
  ExpectOut(Connect(MakeCertificate("distrust", "client", "someone", "ca", "other-ca")));
  served_->Stop();
  // A certificate for another host.
  Start("--tls-certificates " + MakeCertificate("elsewhere", "server", "elsewhere.example", "ca"));
  ExpectOut(Connect(MakeCertificate("good", "client", "someone", "ca")));
}

TEST_F(NbdTlsTest, AnExpiredCertificateDoesNotStart) {
  MakeCertificate("old", "server", "localhost", "ca", "", "-days -1");
  auto failed = Shell(testing_support::PlatterProgram() + " serve --socket " + File("x.sock") +
                      " --tls-certificates " + File("old") + " " + File("disk.qcow2"));
  EXPECT_EQ(failed.exit_code, 1);
  EXPECT_THAT(failed.output, HasSubstr("has expired"));
}

TEST_F(NbdTlsTest, ClientsAreVerified) {
  Start("--tls-verify-peer --tls-certificates " + File("pki"));
  ExpectIn(Connect(MakeCertificate("good", "client", "someone", "ca")));
  ExpectOut(Connect(MakeCertificate("foreign", "client", "someone", "other-ca", "ca")));
  ExpectOut(Connect(MakeCertificate("late", "client", "someone", "ca", "", "-days -1")));
  std::filesystem::create_directories(File("nobody"));
  std::filesystem::copy(File("ca.pem"), File("nobody/ca-cert.pem"));
  ExpectOut(Connect(File("nobody")));
  ExpectOut(ConnectPlain());
  ExpectIn(Connect(File("good")));
  EXPECT_THAT(served_->Log(), HasSubstr("TLS: handshake: "));
}

TEST_F(NbdTlsTest, OnlyTheAuthorizedGetIn) {
  Start("--authz CN=alice,O=Example --authz CN=bob,O=Example --tls-certificates " + File("pki"));
  ExpectIn(Connect(MakeCertificate("alice", "client", "alice", "ca")));
  ExpectIn(Connect(MakeCertificate("bob", "client", "bob", "ca")));
  ExpectOut(Connect(MakeCertificate("mallory", "client", "mallory", "ca")));
  EXPECT_THAT(served_->Log(), HasSubstr("'CN=mallory,O=Example' is not authorized"));
}

TEST_F(NbdTlsTest, PreSharedKeys) {
  const std::string right(64, 'a'), wrong(64, 'b');
  std::ofstream(File("keys")) << "alice:" << right << "\nbob:" << wrong << "\n";
  Start("--tls-psk " + File("keys"));
  auto connect = [&](const std::string& user, const std::string& key) {
    std::ofstream(File("client")) << user << ":" << key << "\n";
    return Shell(fmt::format("nbdinfo --size 'nbds://{}@localhost:{}/?tls-psk-file={}' 2>&1", user,
                             port_, File("client")));
  };
  ExpectIn(connect("alice", right));
  ExpectIn(connect("bob", wrong));
  ExpectOut(connect("alice", wrong));
  ExpectOut(connect("mallory", right));
  ExpectOut(ConnectPlain());
  served_->Stop();
  Start("--authz alice --tls-psk " + File("keys"));
  ExpectIn(connect("alice", right));
  ExpectOut(connect("bob", wrong));
}

TEST_F(NbdTlsTest, OldTlsIsRefusedAndPlainBytesDoNotSlipIn) {
  Start("--tls-certificates " + File("pki"));
  MustRunPython(folder_, fmt::format("port = {}\nca = '{}'\n", port_, File("ca.pem")) + R"(
import socket, ssl, struct
def option(number, data=b''):
    return b'IHAVEOPT' + struct.pack('>II', number, len(data)) + data
def start(extra=b''):
    s = socket.create_connection(('127.0.0.1', port))
    s.recv(18, socket.MSG_WAITALL)
    s.sendall(struct.pack('>I', 3) + option(5) + extra)
    return s
def speak(version, extra=b''):
    s = start(extra)
    if len(s.recv(20, socket.MSG_WAITALL)) < 20:
        raise ssl.SSLError('closed')
    context = ssl.create_default_context(cafile=ca)
    context.set_ciphers('DEFAULT:@SECLEVEL=0')
    context.minimum_version = context.maximum_version = version
    t = context.wrap_socket(s, server_hostname='localhost')
    t.sendall(option(3))
    return t.recv(20)
assert speak(ssl.TLSVersion.TLSv1_2)[8:12] == b'\0\0\0\3'
assert speak(ssl.TLSVersion.TLSv1_3)[8:12] == b'\0\0\0\3'
for attempt in (lambda: speak(ssl.TLSVersion.TLSv1_1), lambda: speak(ssl.TLSVersion.TLSv1_3, option(3))):
    try:
        attempt()
    except (ssl.SSLError, OSError):
        pass
    else:
        raise Exception('let in')
)");
}

TEST_F(NbdTlsTest, OptionsThatPromiseTooMuchAreRefused) {
  const std::string serve = testing_support::PlatterProgram() + " serve --socket " +
                            File("x.sock") + " ",
                    image = " " + File("disk.qcow2");
  for (const std::string& options :
       {std::string("--tls require"),
        "--tls on --tls-verify-peer --tls-certificates " + File("pki"),
        std::string("--authz CN=alice"), "--tls-certificates " + File("missing"),
        std::string("--tls-psk /dev/null")}) {
    auto failed = Shell(serve + options + image);
    EXPECT_EQ(failed.exit_code, 1) << options;
    EXPECT_THAT(failed.output, HasSubstr("platter: ")) << options;
  }
}

}  // namespace
}  // namespace platter
