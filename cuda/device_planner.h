// DevicePlanner: RoutingPlanner on a CUDA device, in the same row order. Only the rows per expert
// come to the host, which the sizes of the grouped products and of the all-to-all need.
#pragma once

#include "core/moe/routing_plan.h"
#include "cuda/cuda_ops.h"

namespace openmoe {

class DevicePlanner final : public RoutingPlanner {
 public:
  // `ops` must outlive this.
  DevicePlanner(CudaOps& ops, const ExchangeShape& shape, std::int64_t ep);
  ~DevicePlanner() override;

  void allocate_buffers(Arena& arena) override;
  void plan_sent(Routing& routing, Tensor choice, Tensor slot) override;

 private:
  CudaOps& ops_;
  Tensor queue_begin_;                        // (E * N/G) i32: first row of each (expert, group)
  Tensor expert_rows_;                        // (E) i64: rows sent to each expert
  std::int64_t* host_expert_rows_ = nullptr;  // (E), pinned
};

}  // namespace openmoe
