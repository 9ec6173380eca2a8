// What the benchmarks of `convert` share: the command line, and one conversion by both programs.
//
//   BENCH PLATTER IMAGE.raw [--runs N] [--only SUBSTRING] [--dir DIR]
//
// Everything happens in DIR (default: on tmpfs), to which the image is copied. Every output of ours
// is judged by `qemu-img compare` after the timing; a line whose output differs says FAILED.
#pragma once

#include <optional>
#include <string>

namespace platter::bench {

class Converting {
 public:
  // Prints what is wrong, and returns nothing, if the command line is, or DIR is of no use.
  static std::optional<Converting> FromCommandLine(int argc, char** argv);

  const std::string& platter() const { return platter_; }
  const std::string& raw() const { return raw_; }  // the image
  int runs() const { return runs_; }
  int few() const { return runs_ > 3 ? 3 : runs_; }  // for what takes long
  std::string In(const std::string& name) const { return dir_ + "/" + name; }
  bool Wanted(const std::string& name) const { return name.find(only_) != std::string::npos; }

  // DIR/NAME, made by `qemu-img convert OPTIONS` of the image where it is not there. Ends the
  // program if that fails.
  std::string Input(const std::string& name, const std::string& options) const;

  struct Line {
    std::string name;
    std::string ours, peer;  // options of `convert`
    std::string source, source_format, target_format;
    double goal = 0;  // ratio of times; 0: none
    int runs = 1;
    bool sizes = false;  // print the ratio of the outputs' sizes as well
  };
  // Runs both, judges ours, prints.
  void Convert(const Line& line) const;

  // Removes the outputs.
  bool CleanUp() const;

 private:
  std::string Out(const char* who) const { return In(std::string("out.") + who); }
  std::string Clean() const { return "rm -f " + Out("ours") + " " + Out("peer"); }

  std::string platter_, raw_, dir_ = "/dev/shm/platter-bench", only_;
  int runs_ = 5;
};

}  // namespace platter::bench
