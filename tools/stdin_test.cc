// A raw disk from standard input, of which nobody knows how long it is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>

#include "tools/platter_testing.h"

namespace platter {
namespace {

using testing_support::MustRun;

class StdinTest : public PlatterTest {
 protected:
  // platter ARGS with what `writer` writes as its standard input, through a pipe.
  Ran Feed(const std::string& writer, std::vector<std::string> args) {
    FILE* pipe = popen(writer.c_str(), "r");
    int saved = dup(STDIN_FILENO);
    dup2(fileno(pipe), STDIN_FILENO);
    Ran ran = Platter(std::move(args));
    dup2(saved, STDIN_FILENO);
    close(saved);
    EXPECT_EQ(pclose(pipe), 0) << writer;
    return ran;
  }

  void Import(const std::string& format, const std::string& options) {
    SCOPED_TRACE(format + " " + options);
    std::vector<std::string> args{"convert", "-q", "--force", "-O", format};
    if (!options.empty()) args.insert(args.end(), {"-o", options});
    args.insert(args.end(), {"-", File("out")});
    Ran ran = Feed("cat " + File("source.raw"), args);
    ASSERT_EQ(ran.code, 0) << ran.err;
    MustRun("qemu-img compare -q -f raw -F " + format + " " + File("source.raw") + " " +
            File("out"));
    if (format != "raw") {
      EXPECT_EQ(Platter({"check", "-q", "-f", format, File("out")}).code, 0);
    }
  }
};

// In turn the image grows with the stream, and the stream is put aside first.
TEST_F(StdinTest, EveryFormatTakesAStream) {
  RawSource();
  MustRun("truncate -s 70M " + File("source.raw") +
          " && qemu-io -f raw -c 'write -q -P 9 69M 1M' " + File("source.raw"));
  Import("raw", "");
  Import("qcow2", "");
  Import("vdi", "");
  Import("vhdx", "");
  Import("vpc", "force_size=on");
  for (std::string subformat : {"monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse",
                                "twoGbMaxExtentFlat", "streamOptimized"}) {
    Import("vmdk", "subformat=" + subformat);
  }
}

TEST_F(StdinTest, AnEmptyStreamIsAnEmptyDisk) {
  for (std::string format : {"raw", "qcow2", "vmdk", "vdi"}) {
    SCOPED_TRACE(format);
    Ran ran = Feed("true", {"convert", "-q", "--force", "-O", format, "-", File("out")});
    ASSERT_EQ(ran.code, 0) << ran.err;
    ran = Platter({"info", "--output", "json", "-f", format, File("out")});
    EXPECT_THAT(ran.out, testing::HasSubstr("\"virtual-size\": 0"));
  }
}

}  // namespace
}  // namespace platter
