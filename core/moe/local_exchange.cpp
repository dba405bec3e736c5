#include "core/moe/local_exchange.h"

namespace openmoe {

void LocalExchange::allocate_routing(Arena& arena, Routing& routing) {
  planner_->allocate(arena, routing);
}

void LocalExchange::allocate_buffers(Arena& arena) {
  planner_->allocate_buffers(arena);
}

void LocalExchange::plan(Routing& routing, Tensor choice, Tensor slot) {
  planner_->plan_sent(routing, choice, slot);
  routing.received_per_source = routing.sent_per_expert;
  planner_->plan_received(routing);
}

}  // namespace openmoe
