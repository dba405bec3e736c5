// RunObservers: who is told of what a training run does on this rank.
#pragma once

#include "core/op_observer.h"
#include "parallel/collective_observer.h"
#include "parallel/rank_activity.h"

namespace openmoe {

struct RunObservers {
  RunObservers() {
    collectives.add(activity);
    ops.add_observer(activity);
  }
  RunObservers(const RunObservers&) = delete;
  RunObservers& operator=(const RunObservers&) = delete;

  RankActivity activity;
  CollectiveObservers collectives;
  OpObservers ops;
};

}  // namespace openmoe
