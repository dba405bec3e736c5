// RoutingPlanner: the part of a token exchange that is arithmetic: which row of the send order
// every kept assignment takes, and where received rows lie in expert order. Every exchange shares
// it, so that all have one row order. No communication, no row is moved. This one works in host
// memory; that of a device (cuda/device_planner.h) numbers rows there.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/moe/token_exchange.h"

namespace openmoe {

// The elements of a host tensor.
template <typename T>
std::span<T> host_elements(const Tensor& tensor) {
  OPENMOE_CHECK(tensor.device == Device::host, "tensor of a device");
  return {tensor.as<T>(), static_cast<std::size_t>(tensor.num_elements())};
}

class RoutingPlanner {
 public:
  RoutingPlanner(const ExchangeShape& shape, std::int64_t ep);
  virtual ~RoutingPlanner() = default;

  const ExchangeShape& shape() const { return shape_; }
  std::int64_t ep() const { return ep_; }
  std::int64_t num_local_experts() const { return shape_.num_experts / ep_; }
  // Rows that one rank can send to `experts` of one rank: each token chooses each expert at most
  // once, and no more than the slots of its groups.
  std::int64_t max_rows_per_pair(std::int64_t experts) const;
  std::int64_t max_received() const { return ep_ * max_rows_per_pair(num_local_experts()); }

  // Tensors and vectors of a handle, at the largest sizes the shape allows.
  void allocate(Arena& arena, Routing& routing) const;
  // What all handles share.
  virtual void allocate_buffers(Arena&) {}

  // choice, slot (N, 2) i32: expert and slot of each assignment, slot -1 where it has no row.
  // Writes row_token (S), assignment_row (N, 2), num_sent and sent_per_expert. Send order is by
  // (expert, group, slot): a pure function of the routing decision. The kept slots of a (group,
  // expert) are 0, 1, ... without gaps; anything else is a programmer error.
  virtual void plan_sent(Routing& routing, Tensor choice, Tensor slot);
  void plan_sent(Routing& routing, std::span<const std::int32_t> choice,
                 std::span<const std::int32_t> slot, std::span<std::int32_t> row_token,
                 std::span<std::int32_t> assignment_row);

  // From received_per_source: num_received and expert_offsets. Throws RuntimeFault when the rows
  // pass max_received(), which says that ranks disagree about the shape.
  void plan_received(Routing& routing) const;

 private:
  ExchangeShape shape_;
  std::int64_t ep_;
  // (E, N/G): rows of each (expert, group), then the first row of each.
  std::vector<std::int64_t> queue_rows_, queue_begin_;
};

}  // namespace openmoe
