#include "core/moe/token_exchange.h"

#include "core/base/check.h"

namespace openmoe {

Tensor TokenExchange::dispatch(Tensor sent, Tensor received, const Routing& routing) {
  OPENMOE_CHECK(sent.size(0) >= routing.num_sent, sent.shape.to_string(), " for ", routing.num_sent,
                " rows");
  if (!moves_rows()) return sent;
  for (std::int64_t part = 0; part < num_parts(); ++part)
    start_dispatch(sent, received, routing, part);
  for (std::int64_t part = 0; part < num_parts(); ++part)
    finish_dispatch(sent, received, routing, part);
  return received;
}

Tensor TokenExchange::combine(Tensor rows, Tensor returned, const Routing& routing) {
  OPENMOE_CHECK(rows.size(0) >= routing.num_received, rows.shape.to_string(), " for ",
                routing.num_received, " rows");
  if (!moves_rows()) return rows;
  for (std::int64_t part = 0; part < num_parts(); ++part)
    start_combine(rows, returned, routing, part);
  for (std::int64_t part = 0; part < num_parts(); ++part) finish_combine(part);
  return returned;
}

}  // namespace openmoe
