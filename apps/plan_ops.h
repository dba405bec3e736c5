// PlanOps: a backend that computes nothing and tells what it was asked to do. A step that runs on
// it takes milliseconds whatever the model's size, since its memory is addresses only.
#pragma once

#include <cstdint>
#include <memory>

#include "core/base/dtype.h"
#include "core/ops.h"

namespace openmoe {

// What an op costs at least: its arithmetic, and the bytes of the tensors it reads and writes.
struct OpWork {
  double flops = 0.0;
  DType operands = DType::f32;  // of the products; f32 where there are none
  double bytes = 0.0;
};

class WorkListener {
 public:
  virtual ~WorkListener() = default;
  virtual void on_work(const OpWork& work) = 0;
};

// `listener` must outlive the result. Ops that ask ranks for sums ask for the same ones as CpuOps.
std::unique_ptr<Ops> make_plan_ops(WorkListener& listener);

}  // namespace openmoe
