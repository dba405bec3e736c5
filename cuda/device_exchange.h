// DeviceExchange: the token exchange of a CUDA device. Row order is that of RoutingPlanner,
// computed on the device; only the rows per expert come to the host, which the sizes of the grouped
// products and of the all-to-all need.
#pragma once

#include <deque>
#include <vector>

#include "core/moe/routing_plan.h"
#include "cuda/cuda_ops.h"
#include "parallel/device_communicator.h"

namespace openmoe {

class DeviceExchange final : public TokenExchange {
 public:
  // `group` are the ep ranks; null: all experts are here. Both must outlive this.
  DeviceExchange(CudaOps& ops, const ExchangeShape& shape, DeviceCommunicator* group);
  ~DeviceExchange() override;

  std::int64_t num_local_experts() const override { return planner_.num_local_experts(); }
  std::int64_t max_sent() const override { return planner_.shape().max_sent(); }
  std::int64_t max_received() const override { return planner_.max_received(); }
  void allocate_routing(Arena& arena, Routing& routing) override;
  void allocate_buffers(Arena& arena) override;

  void plan(Routing& routing, Tensor choice, Tensor slot) override;
  bool moves_rows() const override { return planner_.ep() > 1; }
  // On the stream of the device: starting is all there is to do.
  void start_dispatch(Tensor sent, Tensor received, const Routing& routing,
                      std::int64_t part) override;
  void finish_dispatch(Tensor, Tensor, std::int64_t) override {}
  void start_combine(Tensor rows, Tensor returned, const Routing& routing,
                     std::int64_t part) override;
  void finish_combine(Tensor, std::int64_t) override {}

  // A run of rows that a copy brings from the order of arrival to expert order or back.
  struct Block {
    std::int64_t outer_row;   // in the send order of this rank (its own rows) or in the staged rows
    std::int64_t expert_row;  // in expert order
    std::int64_t num_rows;
    std::int64_t is_own;
  };

 private:
  enum class Direction { to_experts, from_experts };
  // Fills blocks_ and the counts and offsets of the all-to-all from a handle.
  void lay_out(const Routing& routing);
  void copy_blocks(Direction direction, Tensor sent, Tensor expert_rows);

  CudaOps& ops_;
  RoutingPlanner planner_;
  DeviceCommunicator* group_;
  Tensor queue_begin_;                        // (E * N/G) i32: first row of each (expert, group)
  Tensor expert_rows_;                        // (E) i64: rows sent to each expert
  Tensor staging_;                            // (rows of other ranks, D)
  std::int64_t* host_expert_rows_ = nullptr;  // (E), pinned
  std::deque<std::vector<std::int64_t>> expert_offsets_;  // of every handle: they stay on the host
  std::vector<Block> blocks_;
  std::vector<std::int64_t> peer_sent_, peer_sent_offsets_, peer_received_, peer_received_offsets_;
};

}  // namespace openmoe
