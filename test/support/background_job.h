// A whole job of the openmoe binary that runs beside the test, and the means to disturb it.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <chrono>
#include <thread>

#include "test/support/run_command.h"

namespace openmoe::test {

class BackgroundJob {
 public:
  // `openmoe ARGUMENTS` on `ranks` ranks with one thread each. `environment` is put before the
  // command ("NAME=value ").
  BackgroundJob(int ranks, const std::string& arguments, const std::string& output_file,
                const std::string& environment = "")
      : output_file_(output_file) {
    const std::string command = environment + "OMP_NUM_THREADS=1 exec " +
                                source_path("scripts/mpirun.sh") + " -np " + std::to_string(ranks) +
                                " " + OPENMOE_TEST_BINARY + " " + arguments;
    launcher_ = fork();
    if (launcher_ != 0) return;
    setpgid(0, 0);
    const int out = open(output_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    execl("/bin/bash", "bash", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  ~BackgroundJob() {
    if (!ended_) kill_all();
  }
  BackgroundJob(const BackgroundJob&) = delete;
  BackgroundJob& operator=(const BackgroundJob&) = delete;

  // The process of a rank of this job; -1 when there is none.
  pid_t pid_of_rank(int rank) const {
    for (const pid_t child : children(launcher_))
      if (rank_of(child) == std::to_string(rank)) return child;
    return -1;
  }
  // Every process of the job, the launcher included, at once and without warning.
  void kill_all() {
    std::vector<pid_t> all = children(launcher_);
    all.push_back(launcher_);
    for (const pid_t pid : all) kill(pid, SIGKILL);
    wait_for_end(30);
    for (const pid_t pid :
         all)  // orphans end with the signal too; the next run must find them gone
      for (int i = 0; i < 1000 && is_running(pid); ++i) pause_ms(10);
  }
  // Waits for body() to be true; false when the job ended or `seconds` passed before.
  template <typename Body>
  bool wait_until(const Body& body, double seconds = 120) {
    const auto begin = std::chrono::steady_clock::now();
    for (;;) {
      if (body()) return true;
      if (poll() || since(begin) > seconds) return false;
      pause_ms(2);
    }
  }
  // The exit code of the job; -1 when it still runs after `seconds`.
  int wait_for_end(double seconds) {
    const auto begin = std::chrono::steady_clock::now();
    while (!poll()) {
      if (since(begin) > seconds) return -1;
      pause_ms(5);
    }
    return exit_code_;
  }
  pid_t launcher() const { return launcher_; }
  std::string output() const {
    std::ifstream in(output_file_);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static void pause_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

 private:
  static double since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  // The state letter of /proc/PID/stat and its parent; 0 when there is no such process.
  static std::pair<char, pid_t> state_of(pid_t pid) {
    std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
    const std::string text(std::istreambuf_iterator<char>(in), {});
    const auto end = text.rfind(')');
    if (end == std::string::npos) return {0, 0};
    char state = 0;
    pid_t parent = 0;
    std::istringstream(text.substr(end + 1)) >> state >> parent;
    return {state, parent};
  }
  static bool is_running(pid_t pid) {
    const char state = state_of(pid).first;
    return state != 0 && state != 'Z';
  }
  static std::vector<pid_t> children(pid_t parent) {
    std::vector<pid_t> found;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const std::string name = entry.path().filename();
      if (name.find_first_not_of("0123456789") != std::string::npos) continue;
      if (state_of(std::stoi(name)).second == parent) found.push_back(std::stoi(name));
    }
    return found;
  }
  static std::string rank_of(pid_t pid) {
    std::ifstream in("/proc/" + std::to_string(pid) + "/environ");
    const std::string name = "OMPI_COMM_WORLD_RANK=";
    for (std::string variable; std::getline(in, variable, '\0');)
      if (variable.starts_with(name)) return variable.substr(name.size());
    return "";
  }
  bool poll() {
    if (ended_) return true;
    int status = 0;
    if (waitpid(launcher_, &status, WNOHANG) != launcher_) return false;
    exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return ended_ = true;
  }

  std::string output_file_;
  pid_t launcher_ = -1;
  bool ended_ = false;
  int exit_code_ = -1;
};

}  // namespace openmoe::test
