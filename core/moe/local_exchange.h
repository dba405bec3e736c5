// LocalExchange: the token exchange of a rank that holds every expert. Send order is expert order,
// so dispatch and combine return what they are given, and no row moves.
#pragma once

#include "core/moe/routing_plan.h"

namespace openmoe {

class LocalExchange : public TokenExchange {
 public:
  explicit LocalExchange(const ExchangeShape& shape);

  std::int64_t num_local_experts() const override { return planner_.num_local_experts(); }
  std::int64_t max_sent() const override { return planner_.shape().max_sent(); }
  std::int64_t max_received() const override { return max_sent(); }
  void allocate_routing(Arena& arena, Routing& routing) override;
  void allocate_buffers(Arena& arena) override;

  void plan(Routing& routing, Tensor choice, Tensor slot) override;
  Tensor dispatch(Tensor sent, Tensor buffer, const Routing& routing) override;
  Tensor combine(Tensor rows, Tensor buffer, const Routing& routing) override;

 private:
  RoutingPlanner planner_;
};

}  // namespace openmoe
