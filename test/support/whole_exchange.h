// All parts of a token exchange at once.
#pragma once

#include "core/moe/token_exchange.h"

namespace openmoe::test {

// The result is `received` filled, or `sent` itself where nothing moves.
inline Tensor dispatch(TokenExchange& exchange, Tensor sent, Tensor received,
                       const Routing& routing) {
  if (!exchange.moves_rows()) return sent;
  for (std::int64_t part = 0; part < exchange.num_parts(); ++part)
    exchange.start_dispatch(sent, received, routing, part);
  for (std::int64_t part = 0; part < exchange.num_parts(); ++part)
    exchange.finish_dispatch(sent, received, part);
  return received;
}

inline Tensor combine(TokenExchange& exchange, Tensor rows, Tensor returned,
                      const Routing& routing) {
  if (!exchange.moves_rows()) return rows;
  for (std::int64_t part = 0; part < exchange.num_parts(); ++part)
    exchange.start_combine(rows, returned, routing, part);
  for (std::int64_t part = 0; part < exchange.num_parts(); ++part)
    exchange.finish_combine(returned, part);
  return returned;
}

}  // namespace openmoe::test
