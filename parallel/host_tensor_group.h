// The tensor group of ranks whose tensors are in host memory, over a Communicator.
#pragma once

#include <memory>

#include "core/ops.h"
#include "core/tensor_group.h"
#include "parallel/communicator.h"

namespace openmoe {

// `ops` and `group` must outlive it.
std::unique_ptr<TensorGroup> make_host_tensor_group(Ops& ops, Communicator& group);

}  // namespace openmoe
