// LocalExchange: the token exchange of a rank that holds every expert. Send order is expert order,
// so dispatch and combine return what they are given, and no row moves.
#pragma once

#include <memory>
#include <utility>

#include "core/base/check.h"
#include "core/moe/routing_plan.h"

namespace openmoe {

class LocalExchange : public TokenExchange {
 public:
  explicit LocalExchange(const ExchangeShape& shape)
      : LocalExchange(std::make_unique<RoutingPlanner>(shape, 1)) {}
  // `planner` is for one rank.
  explicit LocalExchange(std::unique_ptr<RoutingPlanner> planner) : planner_(std::move(planner)) {
    OPENMOE_CHECK(planner_->ep() == 1, "a planner for ", planner_->ep(), " ranks");
  }

  std::int64_t num_local_experts() const override { return planner_->num_local_experts(); }
  std::int64_t max_sent() const override { return planner_->shape().max_sent(); }
  std::int64_t max_received() const override { return max_sent(); }
  void allocate_routing(Arena& arena, Routing& routing) override;
  void allocate_buffers(Arena& arena) override;

  void plan(Routing& routing, Tensor choice, Tensor slot) override;
  bool moves_rows() const override { return false; }
  void start_dispatch(Tensor, Tensor, const Routing&, std::int64_t) override { refuse(); }
  void finish_dispatch(Tensor, Tensor, std::int64_t) override { refuse(); }
  void start_combine(Tensor, Tensor, const Routing&, std::int64_t) override { refuse(); }
  void finish_combine(Tensor, std::int64_t) override { refuse(); }

 private:
  static void refuse() { OPENMOE_CHECK(false, "no row moves"); }

  std::unique_ptr<RoutingPlanner> planner_;
};

}  // namespace openmoe
