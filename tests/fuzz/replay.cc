// Runs a fuzz target's entry point over the files of the folder named on the command line, one
// test case a file, so that a crash names the file. An empty or missing folder leaves the two
// built-in inputs: nothing at all, and one zero byte.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// Optional in libFuzzer's interface.
extern "C" __attribute__((weak)) int LLVMFuzzerInitialize(int* argc, char*** argv);

namespace {

namespace fs = std::filesystem;

class Replay : public testing::Test {
 public:
  explicit Replay(std::vector<uint8_t> input) : input_(std::move(input)) {}
  void TestBody() override { LLVMFuzzerTestOneInput(input_.data(), input_.size()); }

 private:
  std::vector<uint8_t> input_;
};

void Register(const std::string& name, std::vector<uint8_t> input) {
  testing::RegisterTest("Corpus", name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                        [input = std::move(input)]() -> Replay* { return new Replay(input); });
}

std::vector<uint8_t> Contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (LLVMFuzzerInitialize != nullptr) LLVMFuzzerInitialize(&argc, &argv);
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  Register("nothing", {});
  Register("one_zero_byte", {0});
  std::vector<fs::path> files;
  if (fs::is_directory(argv[1])) {
    for (const auto& entry : fs::recursive_directory_iterator(argv[1])) {
      if (fs::is_regular_file(entry.path())) files.push_back(entry.path());
    }
  }
  std::ranges::sort(files);
  for (const auto& file : files) Register(file.filename().string(), Contents(file));
  return RUN_ALL_TESTS();
}
