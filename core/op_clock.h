// OpClock: the time at which the ops of a backend run, which for a device is not the time at which
// they are called.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace openmoe {

class OpClock {
 public:
  virtual ~OpClock() = default;

  // A place after all ops called so far; places are numbered from 0. A fault of the backend is left
  // to seconds(), since an op that ends by an exception has an end too.
  virtual std::int64_t mark() = 0;
  // Seconds from one place to a later one. Waits until the later one is reached. Throws the
  // backend's fault if it is not.
  virtual double seconds(std::int64_t from, std::int64_t to) = 0;
  // No place so far is asked for any more; numbers begin at 0 again.
  virtual void forget() = 0;
};

// Calls whose places an observer keeps before it asks for their times: of many steps, so that a
// device is seldom waited for.
inline constexpr std::size_t kMostUntimedCalls = 8192;

// For backends whose ops have ended when their call returns.
class HostClock final : public OpClock {
 public:
  std::int64_t mark() override {
    places_.push_back(Clock::now());
    return static_cast<std::int64_t>(places_.size()) - 1;
  }
  double seconds(std::int64_t from, std::int64_t to) override {
    return std::chrono::duration<double>(places_[static_cast<std::size_t>(to)] -
                                         places_[static_cast<std::size_t>(from)])
        .count();
  }
  void forget() override { places_.clear(); }

 private:
  using Clock = std::chrono::steady_clock;
  std::vector<Clock::time_point> places_;
};

}  // namespace openmoe
