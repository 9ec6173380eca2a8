// Images on web, FTP, TFTP and SSH servers, all of them real and started here on loopback.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "io/remote/curl_store.h"
#include "io/remote/sftp_store.h"
#include "tests/interop/qemu.h"
#include "tests/interop/server.h"
#include "tools/platter_testing.h"

namespace platter {
namespace {

using testing_support::FreePort;
using testing_support::MustRun;
using testing_support::Server;

class RemoteTest : public PlatterTest {
 protected:
  RemoteTest() : port_(FreePort()) {
    signal(SIGPIPE, SIG_IGN);  // as main() does
    www_ = File("www");
    MustRun("mkdir " + www_ + " && chmod 755 " + File(".") + " " + www_ +
            " && qemu-img convert -q -f raw -O qcow2 -c " + RawSource() + " " + www_ + "/c.qcow2" +
            " && cp --sparse=always " + File("source.raw") + " " + www_ + "/disk.raw");
  }

  void WriteFile(const std::string& path, const std::string& text) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << text;
  }

  std::string Www(const std::string& name) { return www_ + "/" + name; }
  std::string Port() { return std::to_string(port_); }

  // Converts `url` and lets qemu-img compare the result with the source.
  void ExpectConverts(const std::string& url, std::vector<std::string> more = {}) {
    const std::string out = File("out.qcow2");
    std::filesystem::remove(out);
    std::vector<std::string> args = {"convert", "-O", "qcow2"};
    args.insert(args.end(), more.begin(), more.end());
    args.insert(args.end(), {url, out});
    auto ran = Platter(args);
    ASSERT_EQ(ran.code, 0) << url << ": " << ran.err;
    MustRun("qemu-img compare -f raw -F qcow2 " + File("source.raw") + " " + out);
  }

  void ExpectFails(std::vector<std::string> args, const std::string& words) {
    auto ran = Platter(args);
    EXPECT_EQ(ran.code, 1) << args.back();
    EXPECT_NE(ran.err.find(words), std::string::npos) << ran.err;
    EXPECT_EQ(ran.err.find("secret"), std::string::npos) << ran.err;
  }

  // ca.pem, and s.pem with s.key of a server called localhost, in the test's folder.
  void MakeCertificates() {
    MustRun(
        "cd " + File("") +
        " && openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 "
        "-subj /CN=ca 2>/dev/null && openssl req -newkey rsa:2048 -nodes -keyout s.key -out "
        "s.csr -subj /CN=s 2>/dev/null && printf 'subjectAltName=DNS:localhost' >ext && openssl "
        "x509 -req -in s.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext "
        "-out s.pem 2>/dev/null");
  }

  const uint16_t port_;
  std::string www_;
};

// With nginx.
class WebTest : public RemoteTest {
 protected:
  std::string Url(const std::string& name) { return "http://127.0.0.1:" + Port() + "/" + name; }

  // `rules`: further lines for the server.
  std::unique_ptr<Server> StartNginx(const std::string& rules = "", const std::string& ssl = "") {
    const std::string config = File("nginx.conf");
    MustRun("mkdir -p " + File("nginx"));
    WriteFile(config, "user root; daemon off; master_process off; error_log stderr; pid " +
                          File("nginx/pid") + ";\nevents {}\nhttp {\n  access_log " +
                          File("access.log") + ";\n  client_body_temp_path " + File("nginx/a") +
                          "; proxy_temp_path " + File("nginx/b") + "; fastcgi_temp_path " +
                          File("nginx/c") + "; uwsgi_temp_path " + File("nginx/d") +
                          "; scgi_temp_path " + File("nginx/e") + ";\n  server {\n    listen " +
                          "127.0.0.1:" + Port() + (ssl.empty() ? "" : " ssl") + ";\n    " + ssl +
                          "\n    root " + www_ + ";\n    " + rules + "\n  }\n}\n");
    return std::make_unique<Server>("nginx -c " + config, Server::Ready{.tcp = port_});
  }

  size_t LinesOfLog() {
    std::ifstream log(File("access.log"));
    return std::count(std::istreambuf_iterator<char>(log), {}, '\n');
  }
};

TEST_F(WebTest, EveryCommandReadsAUrl) {
  MustRun("cd " + www_ + " && qemu-img convert -q -f raw -O vmdk -o subformat=streamOptimized " +
          File("source.raw") + " s.vmdk && gzip -k disk.raw && : >empty.raw");
  auto server = StartNginx();
  // There is nowhere to put a copy.
  setenv("TMPDIR", "/nonexistent", 1);
  for (const char* name : {"disk.raw", "c.qcow2", "s.vmdk"}) ExpectConverts(Url(name));
  unsetenv("TMPDIR");
  ExpectConverts(Url("disk.raw.gz"), {"-f", "raw", "--unwrap"});

  auto info = Platter({"info", "--output", "json", Url("c.qcow2")});
  ASSERT_EQ(info.code, 0) << info.err;
  EXPECT_EQ(nlohmann::json::parse(info.out)["format"], "qcow2");
  EXPECT_EQ(Platter({"map", "--output", "json", Url("c.qcow2")}).out,
            Platter({"map", "--output", "json", Www("c.qcow2")}).out);
  EXPECT_EQ(Platter({"compare", Url("c.qcow2"), File("source.raw")}).code, 0);
  EXPECT_EQ(Platter({"hash", "-q", Url("disk.raw")}).out.substr(0, 60),
            Platter({"hash", "-q", Www("c.qcow2")}).out.substr(0, 60));
  EXPECT_EQ(Platter({"check", Url("c.qcow2")}).code, 0);
  EXPECT_EQ(Platter({"info", "-f", "raw", Url("empty.raw")}).code, 0);
}

TEST_F(WebTest, AServerWithoutRangesIsReadOnce) {
  auto server = StartNginx("max_ranges 0;");
  ExpectConverts(Url("c.qcow2"));
  ExpectConverts(Url("disk.raw"), {"-f", "raw"});
  // The probe, which nginx logs as a whole answer, and the download.
  EXPECT_EQ(LinesOfLog(), 4u);
  setenv("TMPDIR", "/nonexistent", 1);
  ExpectFails({"info", Url("c.qcow2")}, "TMPDIR");
  unsetenv("TMPDIR");
}

TEST_F(WebTest, WhatCannotBeHadSaysWhy) {
  auto server = StartNginx(
      "location /loop { return 302 /loop; } location /file { return 302 file:///etc/passwd; }"
      " location /ftp { return 302 ftp://127.0.0.1/x; } location /broken { return 500; }");
  ExpectFails({"info", Url("none.raw")}, "404");
  ExpectFails({"info", Url("loop")}, "redirect");
  ExpectFails({"info", Url("file")}, "rotocol \"file\"");
  ExpectFails({"info", Url("ftp")}, "rotocol \"ftp\"");
  ExpectFails({"info", Url("broken")}, "500");
  ExpectFails({"info", "s3://bucket/disk.raw"}, "s3 URLs are not opened; known: http");
  ExpectFails({"info", "http:///x"}, "names no host");
  ExpectFails({"info", "http://127.0.0.1:1/x"}, "127.0.0.1");
  ExpectFails({"convert", "-n", "-O", "raw", File("source.raw"), Url("disk.raw")},
              "can only be read");
}

TEST_F(WebTest, RedirectsAreFollowed) {
  auto server = StartNginx("location /moved { return 302 /c.qcow2; }");
  ExpectConverts(Url("moved"));
}

TEST_F(WebTest, PasswordsAreSentAndNotShown) {
  MustRun("printf 'me:%s\\n' $(openssl passwd -apr1 secret) >" + File("passwords"));
  auto server = StartNginx("auth_basic x; auth_basic_user_file " + File("passwords") + ";");
  const std::string rest = "@127.0.0.1:" + Port() + "/";
  ExpectConverts("http://me:secret" + rest + "c.qcow2");
  ExpectFails({"info", Url("c.qcow2")}, "401");
  ExpectFails({"info", "http://me:secret2" + rest + "c.qcow2"}, "401");
  ExpectFails({"info", "http://me:secret" + rest + "none"}, "404");
}

TEST_F(WebTest, AFileThatChangesMidwayIsAnError) {
  MustRun("head -c 40000000 /dev/urandom >" + Www("big.raw"));
  auto server = StartNginx("etag on;");
  auto store =
      CurlOpener({.cache = {.ahead = 0, .threads = 0}, .tries = 1}).Open(Url("big.raw"), false);
  ASSERT_TRUE(store) << store.error().text();
  std::vector<std::byte> bytes(1000);
  ASSERT_TRUE((*store)->Read(0, Bytes(bytes)));
  MustRun("head -c 40000000 /dev/urandom >" + Www("big.raw") + " && touch -d 2001-01-01 " +
          Www("big.raw"));
  auto read = (*store)->Read(30'000'000, Bytes(bytes));
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code(), Code::kCorrupt);
  EXPECT_NE(read.error().text().find("changed on the server"), std::string::npos);
}

TEST_F(WebTest, AServerThatIsRestartedIsWaitedFor) {
  MustRun("head -c 40000000 /dev/urandom >" + Www("big.raw"));
  auto server = StartNginx();
  auto store = CurlOpener({.cache = {.ahead = 0, .threads = 0}}).Open(Url("big.raw"), false);
  ASSERT_TRUE(store) << store.error().text();
  std::vector<std::byte> bytes(1000);
  ASSERT_TRUE((*store)->Read(0, Bytes(bytes)));
  server->Kill();
  // The server lives no longer than the thread that starts it.
  std::jthread reader([&] {
    auto read = (*store)->Read(30'000'000, Bytes(bytes));
    EXPECT_TRUE(read) << read.error().text();
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  server = StartNginx();
  reader.join();
}

TEST_F(WebTest, TheDiskCacheSavesRequests) {
  auto server = StartNginx();
  const std::string cache = File("cache");
  ExpectConverts(Url("c.qcow2"), {"--remote-cache", cache});
  const size_t first = LinesOfLog();
  ExpectConverts(Url("c.qcow2"), {"--remote-cache", cache});
  EXPECT_EQ(LinesOfLog(), first + 1);  // whether it is still the same file
}

TEST_F(WebTest, TlsServersAreVerified) {
  const std::string at = File("");
  MakeCertificates();
  auto server =
      StartNginx("", "ssl_certificate " + at + "/s.pem; ssl_certificate_key " + at + "/s.key;");
  ExpectFails({"info", "https://localhost:" + Port() + "/c.qcow2"}, "certificate");
  setenv("SSL_CERT_FILE", (at + "/ca.pem").c_str(), 1);
  ExpectConverts("https://localhost:" + Port() + "/c.qcow2");
  ExpectFails({"info", "https://127.0.0.1:" + Port() + "/c.qcow2"}, "alternative");
  unsetenv("SSL_CERT_FILE");
}

TEST_F(WebTest, WhatAnImageNamesGoesThroughTheGate) {
  MustRun("cd " + www_ + " && qemu-img create -q -u -f qcow2 -F qcow2 -b c.qcow2 beside.qcow2 8M" +
          " && qemu-img create -q -u -f qcow2 -F qcow2 -b ../c.qcow2 above.qcow2 8M" +
          " && qemu-img create -q -u -f qcow2 -F raw -b /etc/passwd root.qcow2 8M" +
          " && qemu-img create -q -u -f qcow2 -F qcow2 -b " + Url("c.qcow2") + " " +
          File("url.qcow2") + " 8M");
  auto server = StartNginx();
  ExpectConverts(Url("beside.qcow2"));
  ExpectFails({"convert", "-O", "raw", Url("above.qcow2"), File("o")}, "leads out of");
  ExpectFails({"convert", "-O", "raw", Url("root.qcow2"), File("o")}, "--allow-external");
  ExpectFails({"convert", "-O", "raw", File("url.qcow2"), File("o")}, "--allow-external");
  ExpectConverts(File("url.qcow2"), {"--allow-external"});
  // The user may name one: as another parent, and for a new image.
  ExpectConverts(File("url.qcow2"), {"--parent", Url("c.qcow2")});
  auto made = Platter(
      {"create", "-f", "qcow2", "-F", "qcow2", "-b", Url("c.qcow2"), File("overlay.qcow2")});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_NE(made.err.find("--allow-external"), std::string::npos) << made.err;
  ExpectConverts(File("overlay.qcow2"), {"--allow-external"});
}

class FtpTest : public RemoteTest {
 protected:
  std::unique_ptr<Server> StartVsftpd(const std::string& more = "") {
    WriteFile(File("vsftpd.conf"),
              "listen=YES\nlisten_address=127.0.0.1\nlisten_port=" + Port() +
                  "\nbackground=NO\nanonymous_enable=YES\nlocal_enable=NO\nanon_root=" + www_ +
                  "\nconnect_from_port_20=NO\nxferlog_enable=NO\nseccomp_sandbox=NO\n"
                  "secure_chroot_dir=" +
                  File("empty") + "\n" + more);
    MustRun("mkdir " + File("empty"));
    return std::make_unique<Server>("vsftpd " + File("vsftpd.conf"), Server::Ready{.tcp = port_});
  }
};

TEST_F(FtpTest, ConvertsFromFtp) {
  auto server = StartVsftpd();
  const std::string url = "ftp://127.0.0.1:" + Port() + "/";
  setenv("TMPDIR", "/nonexistent", 1);
  ExpectConverts(url + "c.qcow2");
  ExpectConverts(url + "disk.raw", {"-f", "raw"});
  unsetenv("TMPDIR");
  ExpectFails({"info", url + "none"}, "none");
}

TEST_F(FtpTest, FtpsServersAreVerified) {
  MakeCertificates();
  auto server = StartVsftpd(
      "ssl_enable=YES\nimplicit_ssl=YES\nallow_anon_ssl=YES\n"
      "force_anon_logins_ssl=YES\nforce_anon_data_ssl=YES\n"
      "require_ssl_reuse=NO\nrsa_cert_file=" +
      File("s.pem") + "\nrsa_private_key_file=" + File("s.key") + "\n");
  const std::string url = "ftps://localhost:" + Port() + "/";
  ExpectFails({"info", url + "c.qcow2"}, "certificate");
  setenv("SSL_CERT_FILE", File("ca.pem").c_str(), 1);
  ExpectConverts(url + "c.qcow2");
  ExpectConverts(url + "disk.raw", {"-f", "raw"});
  ExpectFails({"info", "ftps://127.0.0.1:" + Port() + "/c.qcow2"}, "alternative");
  unsetenv("SSL_CERT_FILE");
}

TEST_F(RemoteTest, ConvertsFromTftp) {
  Server server("in.tftpd --foreground --address 127.0.0.1:" + Port() + " --secure " + www_,
                Server::Ready{.udp = port_});
  const std::string url = "tftp://127.0.0.1:" + Port() + "/";
  ExpectConverts(url + "c.qcow2");
  ExpectConverts(url + "disk.raw", {"-f", "raw"});
  ExpectFails({"info", url + "none"}, "none");
}

class SshTest : public RemoteTest {
 protected:
  std::unique_ptr<Server> StartSshd() {
    const std::string at = File("");
    MustRun("mkdir -p /run/sshd && cd " + at +
            " && ssh-keygen -q -t ed25519 -N '' -f host && ssh-keygen -q -t ed25519 -N '' -f other"
            " && ssh-keygen -q -t ed25519 -N '' -f me && cp me.pub authorized");
    WriteFile(File("sshd_config"),
              "Port " + Port() + "\nListenAddress 127.0.0.1\nHostKey " + at + "/host\n" +
                  "AuthorizedKeysFile " + at + "/authorized\nStrictModes no\nUsePAM no\n" +
                  "PidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n" +
                  "Subsystem sftp internal-sftp\n");
    MustRun("printf '[127.0.0.1]:" + Port() + " ' >" + File("known") + " && cat " +
            File("host.pub") + " >>" + File("known") + " && printf '[127.0.0.1]:" + Port() +
            " ' >" + File("wrong") + " && cat " + File("other.pub") + " >>" + File("wrong") +
            " && : >" + File("nobody"));
    return std::make_unique<Server>("/usr/sbin/sshd -D -e -f " + File("sshd_config"),
                                    Server::Ready{.tcp = port_});
  }
  std::string Url(const std::string& path, const std::string& known,
                  const std::string& scheme = "sftp") {
    return scheme + "://127.0.0.1:" + Port() + path + "?identity=" + File("me") +
           "&known-hosts=" + File(known);
  }
};

TEST_F(SshTest, ConvertsFromSsh) {
  auto server = StartSshd();
  setenv("TMPDIR", "/nonexistent", 1);
  ExpectConverts(Url(Www("c.qcow2"), "known"));
  ExpectConverts(Url(Www("disk.raw"), "known", "ssh"), {"-f", "raw"});
  unsetenv("TMPDIR");
  ExpectFails({"info", Url(Www("none"), "known")}, "No such file");
  ExpectFails({"info", Url(www_, "known")}, "regular file");
}

TEST_F(SshTest, HostsHaveToBeKnown) {
  auto server = StartSshd();
  ExpectFails({"info", Url(Www("c.qcow2"), "nobody")}, "known_hosts does not know it");
  ExpectFails({"info", Url(Www("c.qcow2"), "wrong")}, "may be another machine");
  MustRun(": >" + File("authorized"));
  ExpectFails({"info", Url(Www("c.qcow2"), "known")}, "did not let us in");
}

TEST_F(SshTest, AFileThatChangesMidwayIsAnError) {
  MustRun("head -c 20000000 /dev/urandom >" + Www("big.raw"));
  auto server = StartSshd();
  auto store = SftpOpener({.cache = {.ahead = 0, .threads = 0}, .tries = 1})
                   .Open(Url(Www("big.raw"), "known"), false);
  ASSERT_TRUE(store) << store.error().text();
  std::vector<std::byte> bytes(1000);
  ASSERT_TRUE((*store)->Read(0, Bytes(bytes)));
  MustRun("touch -d 2001-01-01 " + Www("big.raw"));
  auto read = (*store)->Read(10'000'000, Bytes(bytes));
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code(), Code::kCorrupt);
}

}  // namespace
}  // namespace platter
