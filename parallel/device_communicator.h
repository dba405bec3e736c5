// DeviceCommunicator: the verbs of a step that move tensors of a device between the ranks of a
// group. Calls are collective over the group and ordered with the ops of the device: they read what
// earlier ops wrote, and later ops read what they wrote. No CUDA type here. Small numbers on the
// host go through the group's Communicator.
#pragma once

#include <memory>

#include "core/ops.h"
#include "core/tensor.h"
#include "parallel/communicator.h"

namespace openmoe {

class DeviceCommunicator {
 public:
  virtual ~DeviceCommunicator() = default;

  virtual const char* name() const = 0;  // "nccl", "staged"
  // The same ranks on the host.
  virtual Communicator& group() = 0;
  // In place, f32: every rank ends with the element-wise sum, the same bits on every rank.
  virtual void all_reduce_sum(Tensor data) = 0;
  // As Communicator::all_to_all_rows, for rows of (rows, D) tensors of one type.
  virtual void all_to_all_rows(Tensor sent, const RowBlocks& sent_blocks, Tensor received,
                               const RowBlocks& received_blocks) = 0;
};

// Through host memory and `group`: the fallback where devices have no network of their own, and the
// cross-check of one that have. `ops` and `group` must outlive it.
std::unique_ptr<DeviceCommunicator> make_staged_communicator(Ops& ops, Communicator& group);

}  // namespace openmoe
