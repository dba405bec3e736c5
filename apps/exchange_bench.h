// The speed at which all ranks exchange equal pieces, by the definitions of nccl-tests
// (doc/PERFORMANCE.md there): algbw = S / t, where S are the bytes that one rank sends, its own
// piece included, and busbw = algbw (n - 1) / n, what of it crosses links.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/op_clock.h"
#include "core/ops.h"
#include "parallel/communicator.h"

namespace openmoe {

struct ExchangeSpeed {
  std::int64_t bytes = 0;  // S
  double seconds = 0.0;    // t: mean of the calls, of the slowest rank
  double algbw = 0.0;      // bytes/s
  double busbw = 0.0;      // bytes/s
};

struct ExchangeSizes {
  std::int64_t least = 0, most = 0;  // bytes; each size is four times the one before
  std::int64_t calls = 0;            // counted ones of each size
};

// Over `group`, of tensors of `ops`; for a device by way of `collectives` ("nccl" or "staged").
// Sizes are rounded down to whole pieces of f32, one at least. Empty for a group of one.
// Collective.
std::vector<ExchangeSpeed> measure_exchange(Ops& ops, OpClock& clock, Communicator& group,
                                            const std::string& collectives,
                                            const ExchangeSizes& sizes);

}  // namespace openmoe
