// Console: what a command prints to, injected so that tests run commands in
// process.
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>

#include "base/result.h"

namespace platter {

class Console {
 public:
  virtual ~Console() = default;
  virtual void Out(std::string_view text) = 0;  // standard output
  virtual void Err(std::string_view text) = 0;  // standard error
  virtual bool err_is_terminal() const = 0;
  virtual unsigned width() const { return 80; }  // columns of the terminal

  template <class... Args>
  void Print(fmt::format_string<Args...> format, Args&&... args) {
    Out(fmt::vformat(format, fmt::make_format_args(args...)));
  }
  // "platter: text" and a newline on standard error: the one line a failing
  // command leaves.
  void Report(const Error& error) { Err(fmt::format("platter: {}\n", error.text())); }
  void Warn(std::string_view text) { Err(fmt::format("platter: warning: {}\n", text)); }
};

// Standard output and error of the process.
class StdConsole : public Console {
 public:
  StdConsole();
  void Out(std::string_view text) override;
  void Err(std::string_view text) override;
  bool err_is_terminal() const override { return err_is_terminal_; }
  unsigned width() const override;
  // False once a write to standard output failed (a full disk, a closed pipe).
  bool Finish();

 private:
  bool err_is_terminal_, failed_ = false;
};

// Keeps what was printed.
class StringConsole : public Console {
 public:
  void Out(std::string_view text) override { out += text; }
  void Err(std::string_view text) override { err += text; }
  bool err_is_terminal() const override { return terminal; }
  std::string out, err;
  bool terminal = false;
};

}  // namespace platter
