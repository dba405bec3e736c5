// ObservedCommunicator: a communicator that tells of its calls, and whose sub-groups do too.
#pragma once

#include <memory>

#include "parallel/collective_observer.h"
#include "parallel/communicator.h"

namespace openmoe {

// The verbs of `world`, which both must outlive. `world` is the world: ranks of sub-groups are
// named by their rank in it.
std::unique_ptr<Communicator> make_observed_communicator(Communicator& world,
                                                         CollectiveObservers& observers);

}  // namespace openmoe
