// The tensor group of several ranks, over a Communicator; tensors are where `ops` has them.
#pragma once

#include <memory>

#include "core/ops.h"
#include "core/tensor_group.h"
#include "parallel/communicator.h"

namespace openmoe {

// `tensors` and `numbers` are the same ranks: one for tensors of `ops`, one for host memory. All
// must outlive it.
std::unique_ptr<TensorGroup> make_tensor_group(Ops& ops, Communicator& tensors,
                                               Communicator& numbers);

}  // namespace openmoe
