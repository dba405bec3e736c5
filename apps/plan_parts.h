// The parts of a network that talk to other ranks, for a rehearsal (plan_step.h): they ask the
// same of their group as the real ones (parallel/expert_exchange.h, parallel/rank_tensor_group.h),
// and touch no row.
#pragma once

#include <cstdint>
#include <memory>

#include "apps/plan_step.h"
#include "core/moe/token_exchange.h"
#include "core/tensor_group.h"
#include "parallel/communicator.h"
#include "parallel/row_transport.h"

namespace openmoe {

// Both must not outlive `ops` and `group`. `route` is direct or fixed_capacity. Throws UserError
// for more parts than experts.
std::unique_ptr<TokenExchange> make_plan_exchange(Ops& ops, const ExchangeShape& shape,
                                                  std::int64_t num_moe_layers, Communicator& group,
                                                  const ExchangeRoute& route,
                                                  const RouteRows& rows);
std::unique_ptr<TensorGroup> make_plan_tensor_group(Communicator& group);

}  // namespace openmoe
