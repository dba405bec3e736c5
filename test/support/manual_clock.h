// A clock of ops that goes only when it is told to.
#pragma once

#include <stdexcept>
#include <vector>

#include "core/op_clock.h"

namespace openmoe::test {

class ManualClock final : public OpClock {
 public:
  struct Hand {
    double now = 0.0;
    std::size_t num_places = 0;  // since they were forgotten
    bool is_broken = false;
  };
  // `hand` must outlive this.
  explicit ManualClock(Hand& hand) : hand_(hand) {}

  std::int64_t mark() override {
    places_.push_back(hand_.now);
    hand_.num_places = places_.size();
    return static_cast<std::int64_t>(places_.size()) - 1;
  }
  double seconds(std::int64_t from, std::int64_t to) override {
    if (hand_.is_broken) throw std::runtime_error("the clock is broken");
    return places_.at(static_cast<std::size_t>(to)) - places_.at(static_cast<std::size_t>(from));
  }
  void forget() override {
    places_.clear();
    hand_.num_places = 0;
  }

 private:
  Hand& hand_;
  std::vector<double> places_;
};

}  // namespace openmoe::test
