// Torture: nothing that was acknowledged is lost, whenever a process is killed or the power fails.
//
//   bazel run -c opt //tests:torture -- --seconds 600
//
// Kills: a child process does random operations on a chain of images on a real file system (writes,
// zeroing, flushes, snapshots inside and outside, commits, rebases, resizing, compacting, bitmaps;
// see tests/history)
// and says over a pipe when one is done. It is ended by SIGKILL at a random moment. Then every
// image has to open, to be sound for us and for qemu-img check, and the disk to read as it may: a
// byte has the value of the last acknowledged flush, or one that was written since; an operation
// that was under way has been done or not. On that goes the next round.
//
// Cuts: random operations on single images in memory, over a store that forgets what was not synced
// (io/crash_store.h), at each moment and in several ways.
//
// The seed is printed; the last line says what was seen.
#include <fcntl.h>
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <random>
#include <set>
#include <string_view>
#include <thread>

#include "base/check.h"
#include "cow/rebase.h"
#include "cow/search.h"
#include "cow/set_parent.h"
#include "formats/format.h"
#include "io/fd.h"
#include "io/file_lock.h"
#include "io/testing/wrapper_store.h"
#include "tests/history/history.h"
#include "tests/interop/qemu.h"
#include "tests/model/power_cut.h"

namespace platter::history {
namespace {

using Clock = std::chrono::steady_clock;
using testing_support::Shell;

constexpr size_t kOperations = 60;    // planned for a child at most
constexpr int kRoundsOfAnImage = 15;  // then another one is made
constexpr auto kLongestLife = std::chrono::milliseconds(60);

struct Count {
  uint64_t rounds = 0, kills = 0, cuts = 0, losses = 0;
};

// What the disk may read as after a kill: see the top of this file.
class Possible {
 public:
  explicit Possible(Model model) : model_(std::move(model)), durable_(model_.bytes) {}

  // An operation that was done.
  void Done(const Op& op) {
    if (op.kind == Op::kWrite || op.kind == Op::kZero) since_.push_back(op);
    model_.Do(op);
    // Everything else is acknowledged as durable, with what came before it.
    if (op.kind != Op::kWrite && op.kind != Op::kZero) {
      durable_ = model_.bytes;
      since_.clear();
    }
  }

  // One that may have been done in part.
  void UnderWay(const Op& op) {
    if (op.kind == Op::kWrite || op.kind == Op::kZero) {
      since_.push_back(op);
    } else {
      after_ = model_;
      after_->Do(op);
    }
    under_way_ = op;
  }

  // Empty if the disk may read as `bytes`.
  std::string Judge(const std::vector<std::byte>& bytes) const {
    if (after_ && bytes == after_->bytes) return "";
    if (bytes.size() != durable_.size()) {
      return fmt::format("the disk has {} bytes, not {}", bytes.size(), durable_.size());
    }
    std::vector<bool> allowed(bytes.size());
    for (size_t i = 0; i < bytes.size(); ++i) allowed[i] = bytes[i] == durable_[i];
    for (const Op& op : since_) {
      const std::vector<std::byte> content = ContentOf(op);
      for (size_t i = 0; i < content.size(); ++i) {
        if (bytes[op.range.offset + i] == content[i]) allowed[op.range.offset + i] = true;
      }
    }
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (!allowed[i]) return fmt::format("byte {:#x} is {:#x}", i, static_cast<int>(bytes[i]));
    }
    return "";
  }

  const Model& model() const { return model_; }
  const std::optional<Model>& after() const { return after_; }
  const std::optional<Op>& under_way() const { return under_way_; }

 private:
  Model model_;
  std::vector<std::byte> durable_;
  std::vector<Op> since_;
  std::optional<Model> after_;  // the operation under way has been done
  std::optional<Op> under_way_;
};

// In the child: does `ops` and says so.
[[noreturn]] void Live(Machine& machine, const std::vector<Op>& ops, int pipe) {
  for (const Op& op : ops) {
    auto done = machine.Do(op);
    if (!done) {
      fmt::print(stderr, "{}: {}\n", op.ToText(), done.error().text());
      _exit(1);
    }
    char one = 1;
    if (write(pipe, &one, 1) != 1) _exit(2);
  }
  _exit(machine.Close() ? 0 : 1);
}

struct Death {
  size_t done = 0;  // operations
  bool killed = false;
  bool failed = false;  // it ended with an error
};

Death RunChild(Machine& machine, const std::vector<Op>& ops, std::chrono::microseconds life) {
  int ends[2];
  CHECK(pipe(ends) == 0);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    close(ends[0]);
    Live(machine, ops, ends[1]);
  }
  close(ends[1]);
  Death death;
  const auto end = Clock::now() + life;
  std::array<char, 256> said;
  bool open = true;
  while (open && Clock::now() < end) {
    pollfd wait{ends[0], POLLIN, 0};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    if (poll(&wait, 1, static_cast<int>(left.count())) <= 0) continue;
    ssize_t count = read(ends[0], said.data(), said.size());
    open = count > 0;
    death.done += count > 0 ? static_cast<size_t>(count) : 0;
  }
  if (open) kill(child, SIGKILL);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  for (ssize_t count = 1; count > 0; death.done += count > 0 ? static_cast<size_t>(count) : 0) {
    count = read(ends[0], said.data(), said.size());
  }
  close(ends[0]);
  death.killed = WIFSIGNALED(status);
  death.failed = WIFEXITED(status) && WEXITSTATUS(status) != 0;
  return death;
}

// The kernel lets go of what a killed process had open a moment after it is gone, where requests of
// its ring are on their way.
void AwaitLocks(const Machine& machine) {
  const auto end = Clock::now() + std::chrono::seconds(5);
  const auto folder = std::filesystem::path(machine.top()).parent_path();
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    Fd fd(open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    while (fd && Clock::now() < end && !LockImage(fd.get(), LockMode::kWriter, "")) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
}

// Killed between the two sectors that renew what a child records of its parent, a chain is refused:
// nothing is lost, and to record it again is what its user is told to do.
Result<> Reconnect(const Machine& machine) {
  const Gate gate{GatePolicy{}};
  DiskOptions look{.format = machine.setup().top};
  if (ReadChainInfo(machine.top(), look, gate, true, nullptr)) return {};
  for (std::string path = machine.top();;) {
    auto own = TRY(ReadChainInfo(path, {}, gate, false, nullptr));
    const Reference* recorded = ParentOf(own[0].info);
    if (!recorded) return {};
    const std::string folder = std::filesystem::path(path).parent_path();
    const std::string parent =
        recorded->name.empty() ? TRY(FindById(*recorded, **FindFormat(recorded->format), {folder}))
                               : TRY(gate.Resolve(path, *recorded));
    if (!ReadChainInfo(path, {.layers = 2}, gate, true, nullptr)) {
      Reference again{Reference::kParent, std::filesystem::path(parent).filename(),
                      recorded->format};
      TRY(Rebase(path, {.open = {.format = own[0].info.format}, .parent = again, .unsafe = true},
                 gate, nullptr));
    }
    path = parent;
  }
}

// Killed while internal snapshots change, qcow2 may count a cluster as shared before its entry says
// so. Nothing reads differently; check puts it right, and so its user is told to do.
Result<> RepairSnapshots(const Machine& machine) {
  const Gate gate{GatePolicy{}};
  const DiskOptions options{.format = machine.setup().top, .file = {.writable = true}};
  TopImage image = TRY(OpenTopImage(machine.top(), options, gate, nullptr));
  OpenOptions open{.writable = true, .opener = image.opener.get()};
  TRY(image.format->check(*image.store, open, {.repair = CheckOptions::kAll}));
  return {};
}

// What is wrong after a kill; empty: nothing. `model` becomes what is there.
Result<std::string> Inspect(Machine& machine, const Possible& possible, Model& model) {
  AwaitLocks(machine);
  if (possible.under_way() && possible.under_way()->kind == Op::kCommit) {
    TRY(Reconnect(machine));
  }
  const bool snapshots = possible.under_way() && possible.under_way()->kind >= Op::kSnapshot &&
                         possible.under_way()->kind <= Op::kDelete;
  if (snapshots) TRY(RepairSnapshots(machine));
  std::vector<std::byte> bytes = TRY(machine.Read());
  if (auto wrong = possible.Judge(bytes); !wrong.empty()) return wrong;
  // Which snapshots there are says whether the operation was done.
  const Gate gate{GatePolicy{}};
  auto info =
      TRY(ReadChainInfo(machine.top(), {.format = machine.setup().top}, gate, false, nullptr));
  std::set<std::string> names;
  for (const SnapshotInfo& snapshot : info[0].info.snapshots) names.insert(snapshot.name);
  auto fits = [&](const Model& candidate) {
    std::set<std::string> wanted;
    for (const auto& [name, content] : candidate.snapshots) wanted.insert(name);
    return wanted == names;
  };
  const bool done = possible.after() && fits(*possible.after());
  if (!done && !fits(possible.model())) return std::string("other snapshots are there");
  model = done ? *possible.after() : possible.model();
  // Which bitmap there is nobody can tell; and who was killed while it followed writes says so.
  const auto bitmaps = TRY(machine.Bitmaps());
  const bool begun = possible.under_way() && possible.under_way()->kind == Op::kBitmap;
  model.bitmap = !bitmaps.empty();
  if (begun || (model.bitmap && bitmaps[0].in_use)) model.marked.reset();
  model.made = (possible.after() ? *possible.after() : possible.model()).made;
  model.bytes = std::move(bytes);
  return machine.Judge(model);
}

class Torture {
 public:
  explicit Torture(uint64_t seed) : random_(seed) {}

  void KillRounds(const std::string& folder, Clock::time_point end) {
    const auto setups = Setups();
    while (Clock::now() < end) {
      std::filesystem::remove_all(folder);
      std::filesystem::create_directory(folder);
      const Setup& setup = setups[random_.Below(setups.size())];
      Machine machine(folder, setup);
      Model model;
      auto made = machine.Create(random_, model);
      if (!made) {
        Lose(setup.name, "making the image: " + made.error().text());
        continue;
      }
      for (int i = 0; i < kRoundsOfAnImage && Clock::now() < end; ++i) {
        if (!KillRound(machine, model)) break;
      }
    }
  }

  void CutRounds(Clock::time_point end) {
    while (Clock::now() < end) {
      const model::Subject subject = PickSubject();
      model::Plan plan{.seed = random_.Next(), .operations = 8};
      auto done = model::RunPowerCuts(subject, plan, &count.cuts);
      ++count.rounds;
      if (!done) Lose(subject.name, done.message());
    }
  }

  Count count;

 private:
  void Lose(const std::string& what, const std::string& why) {
    ++count.losses;
    fmt::print("LOSS: {}: {}\n", what, why);
  }

  // False where the images are not fit to go on with.
  bool KillRound(Machine& machine, Model& model) {
    std::vector<Op> ops;
    Model plan = model;
    while (ops.size() < kOperations) {
      ops.push_back(plan.Pick(random_, machine.setup()));
      ops.back().by_qemu = false;
      plan.Do(ops.back());
    }
    const auto life = std::chrono::microseconds(
        random_.Below(std::chrono::duration_cast<std::chrono::microseconds>(kLongestLife).count()));
    const Death death = RunChild(machine, ops, life);
    ++count.rounds;
    count.kills += death.killed ? 1 : 0;
    Possible possible(model);
    for (size_t i = 0; i < death.done; ++i) possible.Done(ops[i]);
    const bool under_way = death.done < ops.size();
    if (under_way) possible.UnderWay(ops[death.done]);
    const std::string what =
        fmt::format("{}, killed in operation {}", machine.setup().name,
                    under_way ? ops[death.done].ToText() : std::string("none"));
    if (death.failed) return Lose(what, "the operation failed"), false;
    auto wrong = Inspect(machine, possible, model);
    if (!wrong) return Lose(what, wrong.error().text()), false;
    if (!wrong->empty()) return Lose(what, *wrong), false;
    if (auto tidy = machine.Tidy(); !tidy) return Lose(what, tidy.error().text()), false;
    return true;
  }

  // An image of any format that can be written to.
  model::Subject PickSubject() {
    static const struct {
      const char* format;
      std::map<std::string, std::string> options;
      uint64_t size, unit;
    } kKinds[] = {
        {"qcow2", {}, 40 * 65536, 65536},
        {"qcow2", {{"cluster_size", "512"}}, 700 * 512, 512},
        {"qcow2", {{"cluster_size", "16384"}, {"extended_l2", "on"}}, 40 * 16384, 16384},
        {"qcow2", {{"cluster_size", "4096"}, {"compat", "0.10"}}, 60 * 4096, 4096},
        {"vmdk", {}, 20 * 65536, 65536},
        {"vdi", {{"block_size", "4096"}}, 60 * 4096, 4096},
        {"vhdx", {{"block_size", "1M"}}, 3 * kMiB, kMiB},
        {"vpc", {{"block_size", "4096"}, {"force_size", "on"}}, 60 * 4096, 4096},
    };
    const auto& kind = kKinds[random_.Below(std::size(kKinds))];
    model::Subject subject;
    subject.name = kind.format;
    subject.size = kind.size;
    subject.unit = kind.unit;
    const Format* format = *FindFormat(kind.format);
    subject.create = [format, size = kind.size, options = kind.options](Store& store) {
      return format->create(store, {.size = size, .options = options});
    };
    subject.open = [format](Store& store) {
      return format->open(std::make_unique<WrapperStore>(store), {.writable = true});
    };
    subject.check = [format](Store& store) -> Result<bool> {
      auto report = TRY(format->check(store, {}, {}));
      return report.corruptions + report.errors == 0;
    };
    return subject;
  }

  Random random_;
};

struct Arguments {
  double seconds = 60;
  uint64_t seed = std::random_device{}();
  std::string folder;
};

Arguments ReadArguments(int argc, char** argv) {
  Arguments arguments;
  const char* temporary = std::getenv("TEST_TMPDIR");
  arguments.folder =
      fmt::format("{}/platter-torture-{}",
                  temporary ? temporary : std::filesystem::temp_directory_path().c_str(), getpid());
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    if (name == "--seconds") arguments.seconds = std::strtod(argv[i + 1], nullptr);
    if (name == "--seed") arguments.seed = std::strtoull(argv[i + 1], nullptr, 10);
    if (name == "--folder") arguments.folder = argv[i + 1];
  }
  return arguments;
}

int Main(int argc, char** argv) {
  const Arguments arguments = ReadArguments(argc, argv);
  fmt::print("seed {} (--seed), folder {} (--folder)\n", arguments.seed, arguments.folder);
  Torture torture(arguments.seed);
  const auto start = Clock::now();
  auto at = [&](double part) {
    return start + std::chrono::duration_cast<Clock::duration>(
                       std::chrono::duration<double>(arguments.seconds * part));
  };
  torture.KillRounds(arguments.folder, at(0.75));
  torture.CutRounds(at(1));
  const Count& count = torture.count;
  if (count.losses == 0) std::filesystem::remove_all(arguments.folder);
  fmt::print("rounds {}, kills {}, cuts {}, losses {}\n", count.rounds, count.kills, count.cuts,
             count.losses);
  return count.losses == 0 && count.kills > 0 && count.cuts > 0 ? 0 : 1;
}

}  // namespace
}  // namespace platter::history

int main(int argc, char** argv) { return platter::history::Main(argc, argv); }
