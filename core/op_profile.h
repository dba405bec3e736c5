// OpProfile: wall time and useful arithmetic per op, collected where every op passes: the public
// calls of Ops.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace openmoe {

class OpProfile {
 public:
  struct Entry {
    std::string op;
    std::int64_t calls = 0;
    double seconds = 0.0;
    double flops =
        0.0;  // useful arithmetic of products and attention; 0 for everything bound by memory
  };

  // `op` must outlive the profile (the names are literals).
  void add(const char* op, double seconds, double flops);
  void reset() { entries_.clear(); }
  double total_seconds() const;
  // By falling time.
  std::vector<Entry> entries() const;
  // A table of all ops per step: milliseconds, share of `step_seconds`, GFLOP/s, percent of
  // `peak_flops` (FLOP/s; 0: not known). The last line is the time outside ops.
  std::string table(std::int64_t num_steps, double step_seconds, double peak_flops) const;

 private:
  std::map<std::string, Entry> entries_;
};

}  // namespace openmoe
