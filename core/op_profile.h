// OpProfile: wall time and useful arithmetic per op and part of the network, collected where every
// op passes: the public calls of Ops.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/op_observer.h"

namespace openmoe {

class OpProfile : public OpObserver {
 public:
  struct Entry {
    std::string op;  // or the part, in parts()
    std::int64_t calls = 0;
    double seconds = 0.0;
    double flops =
        0.0;  // useful arithmetic of products and attention; 0 for everything bound by memory
    double product_seconds = 0.0;  // of the products and attention among `seconds`
  };

  // `op` must outlive the profile (the names are literals).
  void add(const char* op, double seconds, double flops) override;
  // The part of the network (a literal) that the following ops belong to.
  void enter(const char* part) override { part_ = part; }
  void reset() { entries_.clear(); }
  double total_seconds() const;
  // By falling time.
  std::vector<Entry> entries() const;
  // The same by part of the network.
  std::vector<Entry> parts() const;
  // A table of all ops per step: milliseconds, share of `step_seconds`, GFLOP/s, percent of
  // `peak_flops` (FLOP/s; 0: not known); then the parts, and what is neither product nor attention.
  std::string table(std::int64_t num_steps, double step_seconds, double peak_flops) const;

 private:
  const char* part_ = "other";
  std::map<std::pair<const char*, const char*>, Entry> entries_;  // by part and op
};

}  // namespace openmoe
