#include "apps/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

namespace openmoe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kPlainLineSeconds = 5.0;
constexpr int kBarWidth = 20;

std::string duration(double seconds) {
  const auto total = std::llround(seconds);
  char text[48];
  if (total >= 86400)
    std::snprintf(text, sizeof text, "%lldd%02lldh", total / 86400, total % 86400 / 3600);
  else if (total >= 3600)
    std::snprintf(text, sizeof text, "%lldh%02lldm", total / 3600, total % 3600 / 60);
  else
    std::snprintf(text, sizeof text, "%lldm%02llds", total / 60, total % 60);
  return text;
}

// Whether a person watches. Open MPI gives its ranks a terminal of its own even when its output
// goes to a file, so under mpirun the output of the parent, mpirun itself on this host, decides.
bool is_watched() {
  if (isatty(STDOUT_FILENO) == 0) return false;
  if (std::getenv("OMPI_COMM_WORLD_RANK") == nullptr) return true;
  std::error_code error;
  const auto output =
      std::filesystem::read_symlink("/proc/" + std::to_string(getppid()) + "/fd/1", error);
  return !error &&
         (output.string().starts_with("/dev/pts/") || output.string().starts_with("/dev/tty"));
}

}  // namespace

Progress::Progress(std::int64_t num_steps, std::int64_t first_step)
    : num_steps_(num_steps),
      first_step_(first_step),
      terminal_(is_watched()),
      start_(Clock::now()) {}

void Progress::show(const Row& row) {
  const auto now = Clock::now();
  const bool is_last = row.step + 1 == num_steps_;
  const std::chrono::duration<double> quiet = now - last_shown_;
  if (!is_last && row.step > first_step_ && quiet.count() < (terminal_ ? 0.1 : kPlainLineSeconds))
    return;
  last_shown_ = now;

  const std::chrono::duration<double> elapsed = now - start_;
  const auto done = static_cast<double>(row.step + 1 - first_step_);
  const double left = elapsed.count() / done * static_cast<double>(num_steps_ - row.step - 1);
  char peak[24] = "";
  if (row.percent_of_peak > 0.0)
    std::snprintf(peak, sizeof peak, "  %4.1f%% peak", row.percent_of_peak);
  char text[256];
  std::snprintf(text, sizeof text,
                "step %lld/%lld  loss %.4f  balance %.4f  grad %.3f  lr %.5f  %.0f tok/s%s  load "
                "%.2f  left %s",
                static_cast<long long>(row.step) + 1, static_cast<long long>(num_steps_), row.loss,
                row.load_balance_loss, row.grad_norm, row.learning_rate, row.tokens_per_s, peak,
                row.max_load, duration(left).c_str());
  if (!terminal_) {
    std::printf("%s\n", text);
    std::fflush(stdout);
    return;
  }
  const int filled =
      static_cast<int>(kBarWidth * (row.step + 1) / std::max<std::int64_t>(1, num_steps_));
  const std::string bar = std::string(static_cast<std::size_t>(filled), '#') +
                          std::string(static_cast<std::size_t>(kBarWidth - filled), '.');
  std::printf("\r\033[K[%s] %s", bar.c_str(), text);
  std::fflush(stdout);
  line_open_ = true;
}

void Progress::say(const std::string& text) {
  finish();
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
}

void Progress::finish() {
  if (line_open_) std::printf("\n");
  line_open_ = false;
}

}  // namespace openmoe
