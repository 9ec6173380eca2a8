// NBD over a unix socket: `platter serve` against qemu-nbd (of the same image) and nbdkit's file
// plugin (of the raw image), with fio's nbd engine as the client, in turns within one run.
//
//   nbd_bench PLATTER IMAGE.raw [--runs N] [--seconds N] [--only SUBSTRING] [--dir DIR]
//
// The image is converted to qcow2 in DIR (/dev/shm/platter-bench); writes go to copies. Printed are
// requests a second (medians), the median of the ratios to the better peer of each round, and of
// ours the processor time a request and the resident memory. Then how long nbdcopy takes to read
// the whole image from ours and from qemu-nbd, and the processor time of the servers.
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace {

[[noreturn]] void Die(const std::string& text) {
  std::fprintf(stderr, "nbd_bench: %s\n", text.c_str());
  std::exit(1);
}

void Shell(const std::string& command) {
  if (std::system(command.c_str()) != 0) Die("failed: " + command);
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// A server on a socket of its own.
class Server {
 public:
  Server(const std::string& command, std::string socket) : socket_(std::move(socket)) {
    unlink(socket_.c_str());
    pid_ = fork();
    if (pid_ == 0) {
      int null = open("/dev/null", O_RDWR);
      dup2(null, STDIN_FILENO), dup2(null, STDOUT_FILENO);
      execl("/bin/sh", "sh", "-c", ("exec " + command).c_str(), nullptr);
      _exit(127);
    }
    for (int i = 0; i < 500 && access(socket_.c_str(), F_OK) != 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  ~Server() {
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
    unlink(socket_.c_str());
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  const std::string& socket() const { return socket_; }

  // Of user and system together.
  double CpuSeconds() const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/stat");
    std::string text{std::istreambuf_iterator<char>(file), {}};
    // The name in parentheses may hold anything; the 12th and 13th word after it are times.
    text.erase(0, text.rfind(')') + 2);
    unsigned long user = 0, system = 0;
    std::sscanf(text.c_str(), "%*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %lu %lu", &user,
                &system);
    return static_cast<double>(user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
  }
  double ResidentMib() const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/statm");
    double total = 0, resident = 0;
    file >> total >> resident;
    return resident * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 20);
  }

 private:
  const std::string socket_;
  pid_t pid_ = -1;
};

struct Load {
  const char* name;
  const char* fio;  // --rw and so on
  bool writes;
  double goal;
};

constexpr Load kLoads[] = {
    {"4k read depth 1", "--rw=randread --bs=4k --iodepth=1", false, 1.2},
    {"4k read depth 32", "--rw=randread --bs=4k --iodepth=32", false, 1.5},
    {"256k read depth 16", "--rw=randread --bs=256k --iodepth=16", false, 1.0},
    {"4k write depth 1", "--rw=randwrite --bs=4k --iodepth=1", true, 1.2},
    {"4k write depth 32", "--rw=randwrite --bs=4k --iodepth=32", true, 1.5},
    {"256k write depth 16", "--rw=randwrite --bs=256k --iodepth=16", true, 1.0},
};

constexpr double kMostOfQemu = 0.7;  // of its time, with nbdcopy

struct Bench {
  std::string platter, raw, dir = "/dev/shm/platter-bench", only;
  int runs = 3, seconds = 2;

  std::string Socket(const char* who) const { return dir + "/" + who + ".sock"; }

  // Requests a second.
  double Fio(const Server& server, const Load& load, int connections) const {
    const std::string output = dir + "/fio.json";
    Shell("fio --name=x --ioengine=nbd '--uri=nbd+unix:///?socket=" + server.socket() + "' " +
          load.fio + " --size=100% --randrepeat=0 --norandommap --time_based --runtime=" +
          std::to_string(seconds) + " --numjobs=" + std::to_string(connections) +
          " --group_reporting --thread --output-format=json --output=" + output + " >/dev/null");
    std::ifstream file(output);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    text.erase(0, text.find('{'));
    auto job = nlohmann::json::parse(text)["jobs"][0];
    return job["read"]["iops"].get<double>() + job["write"]["iops"].get<double>();
  }

  void Line(const std::string& format, const Load& load, int connections) const {
    const std::string name = format + " " + load.name + (connections > 1 ? " x4" : "");
    if (name.find(only) == std::string::npos) return;
    auto image = [&](const char* who, const std::string& of) {
      return load.writes ? dir + "/" + who + "." + of : of == "raw" ? raw : dir + "/nbd.qcow2";
    };
    if (load.writes) {
      for (const char* who : {"ours", "qemu"}) {
        Shell("cp --sparse=always " + (format == "raw" ? raw : dir + "/nbd.qcow2") + " " +
              image(who, format));
      }
      Shell("cp --sparse=always " + raw + " " + image("nbdkit", "raw"));
    }
    {
      Server ours(platter + " serve -q -f " + format + (load.writes ? " --writable" : "") +
                      " --socket " + Socket("ours") + " " + image("ours", format),
                  Socket("ours"));
      Server qemu("qemu-nbd -t -e 8 -f " + format + (load.writes ? "" : " -r") + " -k " +
                      Socket("qemu") + " " + image("qemu", format),
                  Socket("qemu"));
      Server nbdkit("nbdkit -f -U " + Socket("nbdkit") + (load.writes ? "" : " -r") + " file " +
                        image("nbdkit", "raw"),
                    Socket("nbdkit"));
      Measure(name, load, connections, ours, qemu, nbdkit);
    }
    if (load.writes) {
      Shell("rm -f " + image("ours", format) + " " + image("qemu", format) + " " +
            image("nbdkit", "raw"));
    }
  }

  // Reading everything there is with nbdcopy, which asks for holes, and throwing it away.
  void Copy(const std::string& format) const {
    const std::string name = format + " nbdcopy";
    if (name.find(only) == std::string::npos) return;
    const std::string image = format == "raw" ? raw : dir + "/nbd.qcow2";
    Server ours(platter + " serve -q -f " + format + " --socket " + Socket("ours") + " " + image,
                Socket("ours"));
    Server qemu("qemu-nbd -t -e 8 -r -f " + format + " -k " + Socket("qemu") + " " + image,
                Socket("qemu"));
    std::vector<double> our, its, ratios, our_cpu, its_cpu;
    for (int run = -1; run < 2 * runs; ++run) {
      auto copy = [&](const Server& server, std::vector<double>& cpu) {
        const double before = server.CpuSeconds();
        const auto start = std::chrono::steady_clock::now();
        Shell("nbdcopy 'nbd+unix:///?socket=" + server.socket() + "' null:");
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        if (run >= 0) cpu.push_back(server.CpuSeconds() - before);
        return took.count();
      };
      const double a = copy(ours, our_cpu), b = copy(qemu, its_cpu);
      if (run < 0) continue;  // warm-up
      our.push_back(a), its.push_back(b), ratios.push_back(a / b);
    }
    const double ratio = Median(ratios);
    std::printf("%-32s %9.3f %9.3f %9s %7.2f %9.2f %8.2f %8.2f %s\n", name.c_str(), Median(our),
                Median(its), "", ratio, kMostOfQemu, Median(our_cpu), Median(its_cpu),
                ratio > kMostOfQemu ? "missed" : "");
    std::fflush(stdout);
  }

  void Measure(const std::string& name, const Load& load, int connections, const Server& ours,
               const Server& qemu, const Server& nbdkit) const {
    std::vector<double> our, first, second, ratios, cpu;
    for (int run = -1; run < runs; ++run) {
      const double before = ours.CpuSeconds();
      const double a = Fio(ours, load, connections);
      const double used = ours.CpuSeconds() - before;
      const double b = Fio(qemu, load, connections), c = Fio(nbdkit, load, connections);
      if (run < 0) continue;  // warm-up
      our.push_back(a), first.push_back(b), second.push_back(c);
      ratios.push_back(a / std::max(b, c));
      cpu.push_back(used * 1e6 / (a * seconds));
    }
    const double ratio = Median(ratios);
    std::printf("%-32s %9.0f %9.0f %9.0f %7.2f %9.2f %8.1f %8.1f %s\n", name.c_str(), Median(our),
                Median(first), Median(second), ratio, load.goal, Median(cpu), ours.ResidentMib(),
                ratio < load.goal ? "missed" : "");
    std::fflush(stdout);
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    Die("usage: nbd_bench PLATTER IMAGE.raw [--runs N] [--seconds N] [--only SUBSTRING] "
        "[--dir DIR]");
  }
  Bench bench;
  bench.platter = argv[1];
  bench.raw = argv[2];
  for (int i = 3; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--runs")) bench.runs = std::atoi(argv[i + 1]);
    if (!std::strcmp(argv[i], "--seconds")) bench.seconds = std::atoi(argv[i + 1]);
    if (!std::strcmp(argv[i], "--only")) bench.only = argv[i + 1];
    if (!std::strcmp(argv[i], "--dir")) bench.dir = argv[i + 1];
  }
  Shell("mkdir -p " + bench.dir + " && " + bench.platter + " convert -q --force -f raw -O qcow2 " +
        bench.raw + " " + bench.dir + "/nbd.qcow2");
  std::printf("%-32s %9s %9s %9s %7s %9s %8s %8s\n", "requests a second", "ours", "qemu-nbd",
              "nbdkit", "ratio", "goal >=", "cpu us", "MiB");
  for (const std::string format : {"raw", "qcow2"}) {
    for (int connections : {1, 4}) {
      for (const Load& load : kLoads) bench.Line(format, load, connections);
    }
  }
  std::printf("\n%-32s %9s %9s %9s %7s %9s %8s %8s\n", "seconds", "ours", "qemu-nbd", "", "ratio",
              "goal <=", "cpu s", "its cpu");
  for (const std::string format : {"raw", "qcow2"}) bench.Copy(format);
  unlink((bench.dir + "/nbd.qcow2").c_str());
}
