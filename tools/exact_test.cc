// Where a script that changes one word relies on qemu-img's exact behaviour: the same arguments
// give the same map, the same sizes and the same exit code.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <sstream>

#include "tools/platter_testing.h"

namespace platter {
namespace {

using nlohmann::json;
using testing_support::MustRun;
using testing_support::Shell;

std::vector<std::string> Words(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream split(text);
  for (std::string word; split >> word;) words.push_back(word);
  return words;
}

class ExactTest : public PlatterTest {
 protected:
  // qemu-img and platter, in this test's folder: names are given as @NAME.
  std::string Named(std::string line) {
    for (size_t at; (at = line.find('@')) != line.npos;) line.replace(at, 1, File(""));
    return line;
  }
  int Theirs(const std::string& line) { return Shell("qemu-img " + Named(line)).exit_code; }
  Ran Ours(const std::string& line) { return Platter(Words(Named(line))); }

  // What qemu-img says of each run of a map, merged where runs differ in their place only.
  json MapOf(const std::string& file) {
    json merged = json::array();
    for (json entry : json::parse(MustRun("qemu-img map --output json " + Named(file)))) {
      entry.erase("offset");
      if (!merged.empty() && merged.back()["depth"] == entry["depth"] &&
          merged.back()["data"] == entry["data"] && merged.back()["zero"] == entry["zero"]) {
        merged.back()["length"] =
            merged.back()["length"].get<uint64_t>() + entry["length"].get<uint64_t>();
      } else {
        merged.push_back(entry);
      }
    }
    return merged;
  }
  uint64_t SizeOf(const std::string& file) {
    return json::parse(MustRun("qemu-img info -U --output json " + Named(file)))["virtual-size"];
  }
};

TEST_F(ExactTest, NoSparsenessWritesZerosToo) {
  std::string raw = RawSource();
  MustRun(
      Named("qemu-img create -q -f qcow2 -b source.raw -F raw @top.qcow2 && qemu-io -c "
            "'write -z 5M 64k' -c 'write -P 4 7M 100k' @top.qcow2"));
  for (std::string options :
       {"-f raw -O raw @source.raw", "-f raw -O qcow2 @source.raw",
        "-f raw -O qcow2 -c @source.raw", "-f raw -O qcow2 -o extended_l2=on @source.raw",
        "-f raw -O vpc -o force_size=on @source.raw", "-f raw -O vdi @source.raw",
        "-O qcow2 @top.qcow2", "-O qcow2 -B source.raw -F raw @top.qcow2"}) {
    SCOPED_TRACE(options);
    MustRun(Named("rm -f @theirs @ours"));
    ASSERT_EQ(Theirs("convert -S 0 " + options + " @theirs"), 0);
    Ran ran = Ours("convert -S 0 " + options + " @ours");
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(MapOf("@ours"), MapOf("@theirs"));
    MustRun(Named("qemu-img compare @ours @theirs"));
    if (options.find("qcow2") != options.npos) MustRun(Named("qemu-img check -q @ours"));
  }
  // Every byte of a raw file has its block.
  ASSERT_EQ(Ours("convert --force -f raw -S 0 @source.raw @full.raw").code, 0);
  EXPECT_GE(std::stoull(MustRun(Named("stat -c %b @full.raw"))) * 512, 8u << 20);
}

TEST_F(ExactTest, AWarningOfAnotherSizeOnlyWhereItIsAnotherOne) {
  for (std::string line : {"-f vdi @a 513", "-f vdi @a 1", "-f qcow2 @a 513", "-f vhdx @a 513"}) {
    Ran ran = Ours("create --force " + line);
    EXPECT_EQ(ran.code, 0) << line;
    EXPECT_EQ(ran.err, "") << line;
  }
  EXPECT_NE(Ours("create --force -f vpc @a 1M").err, "");
}

TEST_F(ExactTest, NoSparsenessFillsAnExistingImage) {
  std::string raw = RawSource();
  MustRun(Named("qemu-img create -q -f qcow2 @t.qcow2 8M"));
  ASSERT_EQ(Ours("convert -n -S 0 -f raw -O qcow2 @source.raw @t.qcow2").code, 0);
  json map = MapOf("@t.qcow2");
  ASSERT_EQ(map.size(), 1u) << map;
  EXPECT_EQ(map[0]["data"], true);
  MustRun(Named("qemu-img compare -f raw -F qcow2 @source.raw @t.qcow2"));
}

TEST_F(ExactTest, SparseSizesAreThoseOfQemuImg) {
  std::string raw = RawSource();
  for (std::string size : {"0", "512", "4k", "100", "12345", "16M", "17M", "1G", "x"}) {
    MustRun(Named("rm -f @theirs @ours"));
    EXPECT_EQ(Ours("convert -f raw -O qcow2 -S " + size + " @source.raw @ours").code,
              Theirs("convert -f raw -O qcow2 -S " + size + " @source.raw @theirs"))
        << size;
  }
}

TEST_F(ExactTest, MapTakesARange) {
  std::string raw = RawSource();
  MustRun(
      Named("qemu-img create -q -f qcow2 -b source.raw -F raw @top.qcow2 && qemu-io -c "
            "'write -z 5M 64k' -c 'write -P 4 7M 100k' @top.qcow2"));
  for (std::string range : {"-l 2M", "-s 1M", "-s 1M -l 100k", "-s 5000000 -l 100000",
                            "--start-offset=1050001 --max-length=777777", "-s 3M -l 64M"}) {
    SCOPED_TRACE(range);
    json theirs =
        json::parse(MustRun(Named("qemu-img map --output json " + range + " @top.qcow2")));
    Ran ran = Ours("map --output json " + range + " @top.qcow2");
    ASSERT_EQ(ran.code, 0) << ran.err;
    json ours = json::parse(ran.out);
    auto first = [](const json& map) { return map.front()["start"].get<uint64_t>(); };
    auto end = [](const json& map) {
      return map.back()["start"].get<uint64_t>() + map.back()["length"].get<uint64_t>();
    };
    EXPECT_EQ(first(ours), first(theirs));
    EXPECT_EQ(end(ours), end(theirs));
    auto data = [](const json& map) {
      uint64_t bytes = 0;
      for (const json& entry : map) bytes += entry["data"] ? entry["length"].get<uint64_t>() : 0;
      return bytes;
    };
    EXPECT_EQ(data(ours), data(theirs));
    EXPECT_EQ(Ours("map " + range + " @top.qcow2").out,
              MustRun(Named("qemu-img map " + range + " @top.qcow2")));
  }
  for (std::string bad : {"-l x", "-l -1", "-s x"}) {
    EXPECT_EQ(Ours("map " + bad + " @top.qcow2").code, Theirs("map " + bad + " @top.qcow2")) << bad;
  }
}

TEST_F(ExactTest, ResizeTakesTheSameWords) {
  for (std::string words : {"@F +1M",
                            "@F 12M",
                            "@F +0",
                            "@F -1M",
                            "--shrink @F -1M",
                            "@F --shrink -1M",
                            "--shrink @F 9M",
                            "--shrink @F -0",
                            "@F 9M",
                            "--shrink @F -20M",
                            "--shrink @F -10M",
                            "--shrink @F 0",
                            "@F +x",
                            "@F",
                            "@F 1.5M",
                            "--shrink @F 1.5M",
                            "-q @F +1.5k",
                            "--preallocation=full @F 9M",
                            "--shrink --preallocation=full @F 9M",
                            "--shrink --preallocation=off @F 9M",
                            "--preallocation=bogus @F 12M",
                            "--preallocation=metadata @F 12M",
                            "--preallocation=falloc @F 12M",
                            "--preallocation full @F +2M"}) {
    for (std::string format : {"qcow2", "raw"}) {
      SCOPED_TRACE(format + ": " + words);
      MustRun(Named("rm -f @ours @theirs && qemu-img create -q -f " + format +
                    " @ours 10M && cp @ours @theirs"));
      auto line = [&](const std::string& file) {
        std::string copy = words;
        copy.replace(copy.find("@F"), 2, file);
        return "resize -f " + format + " " + copy;
      };
      Ran ran = Ours(line("@ours"));
      EXPECT_EQ(ran.code, Theirs(line("@theirs"))) << ran.err;
      EXPECT_EQ(SizeOf("@ours"), SizeOf("@theirs")) << ran.err;
      if (ran.code == 0 && words[1] != 'q') {
        EXPECT_EQ(ran.out, "Image resized.\n");
      }
    }
  }
}

// metadata: qemu-img calls the new clusters zero and data, since their holes show through.
TEST_F(ExactTest, ResizePreallocatesAsMuch) {
  for (std::string mode : {"off", "metadata", "falloc", "full"}) {
    SCOPED_TRACE(mode);
    MustRun(
        Named("rm -f @ours @theirs && qemu-img create -q -f qcow2 @ours 10M && qemu-io -c "
              "'write -P 5 9M 1M' @ours && cp @ours @theirs"));
    ASSERT_EQ(Theirs("resize --preallocation=" + mode + " @theirs 12M"), 0);
    Ran ran = Ours("resize --preallocation=" + mode + " @ours 12M");
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(MapOf("@ours"), MapOf("@theirs"));
    MustRun(Named("qemu-img check -q @ours && qemu-img compare @ours @theirs"));
    auto blocks = [&](const char* file) {
      return std::stoull(MustRun(Named(std::string("stat -c %b ") + file)));
    };
    EXPECT_NEAR(static_cast<double>(blocks("@ours")), static_cast<double>(blocks("@theirs")),
                1024);  // of 512 bytes: the file systems' own rounding and a few tables
  }
}

}  // namespace
}  // namespace platter
