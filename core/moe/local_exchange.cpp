#include "core/moe/local_exchange.h"

#include "core/base/check.h"

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

Tensor LocalExchange::dispatch(Tensor sent, Tensor, const Routing& routing) {
  OPENMOE_CHECK(sent.size(0) >= routing.num_sent, sent.shape.to_string(), " for ", routing.num_sent,
                " rows");
  return sent;
}

Tensor LocalExchange::combine(Tensor rows, Tensor, const Routing& routing) {
  OPENMOE_CHECK(rows.size(0) >= routing.num_received, rows.shape.to_string(), " for ",
                routing.num_received, " rows");
  return rows;
}

}  // namespace openmoe
