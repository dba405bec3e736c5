// OpProfile: time by the backend's clock and useful arithmetic per op and part of the network,
// collected where every op passes: the public calls of Ops.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/op_clock.h"
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

  // Of ops that `clock` times, which is this one's alone.
  explicit OpProfile(std::unique_ptr<OpClock> clock) : clock_(std::move(clock)) {}

  void begin() override;
  void add(const char* op, double flops) override;
  void enter(const char* part) override { part_ = part; }
  // Waits for the ops so far. As all that follows does.
  void collect();

  double total_seconds();
  // By falling time.
  std::vector<Entry> entries();
  // The same by part of the network.
  std::vector<Entry> parts();
  // A table of all ops per step: milliseconds, share of `step_seconds`, GFLOP/s, percent of
  // `peak_flops` (FLOP/s; 0: not known); then the parts, and what is neither product nor attention.
  std::string table(std::int64_t num_steps, double step_seconds, double peak_flops);

 private:
  struct Call {
    const char* part;
    const char* op;
    double flops;
    std::int64_t from, to;  // places of the clock
  };

  std::unique_ptr<OpClock> clock_;
  std::vector<std::int64_t> begun_;  // places of the ops that are under way
  std::vector<Call> calls_;          // not in the entries yet
  const char* part_ = "other";
  std::map<std::pair<const char*, const char*>, Entry> entries_;  // by part and op
};

}  // namespace openmoe
