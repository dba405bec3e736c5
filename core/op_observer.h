// OpObserver: told of every op of a backend and of the part of the network it belongs to. Profiles,
// traces and the watchdog are such observers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace openmoe {

enum class Pass { forward, backward };

class OpObserver {
 public:
  virtual ~OpObserver() = default;

  // An op begins; add() follows when it has ended. Ops may lie within ops. On a device both mean
  // its place in the order of calls; how long that took Ops::make_clock() tells.
  virtual void begin() {}
  // Names are literals. `flops` is useful arithmetic, 0 for everything bound by memory.
  virtual void add(const char* op, double flops) = 0;
  // The part of the network (a literal) that the next ops belong to.
  virtual void enter(const char* part) = 0;
  // The next ops belong to this layer of this pass; -1: to none.
  virtual void enter_layer(std::int64_t layer, Pass pass) {
    static_cast<void>(layer);
    static_cast<void>(pass);
  }
};

// Several observers where one is expected.
class OpObservers : public OpObserver {
 public:
  // `observer` must outlive its use.
  void add_observer(OpObserver& observer) { observers_.push_back(&observer); }
  void remove_observer(OpObserver& observer) {
    observers_.erase(std::remove(observers_.begin(), observers_.end(), &observer),
                     observers_.end());
  }

  void begin() override {
    for (OpObserver* observer : observers_) observer->begin();
  }
  void add(const char* op, double flops) override {
    for (OpObserver* observer : observers_) observer->add(op, flops);
  }
  void enter(const char* part) override {
    for (OpObserver* observer : observers_) observer->enter(part);
  }
  void enter_layer(std::int64_t layer, Pass pass) override {
    for (OpObserver* observer : observers_) observer->enter_layer(layer, pass);
  }

 private:
  std::vector<OpObserver*> observers_;
};

}  // namespace openmoe
