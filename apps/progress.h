// Progress: what a person sees of a run on standard output. On a terminal one line that is
// rewritten in place; otherwise plain lines, at most one every few seconds. (Debian packages no
// progress bar library for C++.)
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace openmoe {

class Progress {
 public:
  struct Row {
    std::int64_t step = 0;  // just finished, from 0
    double loss = 0.0;
    double load_balance_loss = 0.0;
    double grad_norm = 0.0;
    double learning_rate = 0.0;
    double tokens_per_s = 0.0;
    double percent_of_peak = 0.0;  // of the machine's measured arithmetic peak; 0: not measured
    double max_load = 0.0;         // largest expert load over the mean load, worst layer
  };

  Progress(std::int64_t num_steps, std::int64_t first_step);
  void show(const Row& row);
  // A message of its own line(s) that stays on the screen.
  void say(const std::string& text);
  void finish();

 private:
  std::int64_t num_steps_;
  std::int64_t first_step_;
  bool terminal_;
  bool line_open_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_shown_;
};

}  // namespace openmoe
