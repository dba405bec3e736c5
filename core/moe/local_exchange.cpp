#include "core/moe/local_exchange.h"

namespace openmoe {

LocalExchange::LocalExchange(const ExchangeShape& shape) : planner_(shape, 1) {}

void LocalExchange::allocate_routing(Arena& arena, Routing& routing) {
  planner_.allocate(arena, routing);
}

void LocalExchange::allocate_buffers(Arena&) {}  // no row moves

void LocalExchange::plan(Routing& routing, Tensor choice, Tensor slot) {
  planner_.plan_sent(routing, host_elements<std::int32_t>(choice),
                     host_elements<std::int32_t>(slot),
                     host_elements<std::int32_t>(routing.row_token),
                     host_elements<std::int32_t>(routing.assignment_row));
  routing.received_per_source = routing.sent_per_expert;
  planner_.plan_received(routing);
}

}  // namespace openmoe
