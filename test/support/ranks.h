// Checks that all ranks pass or fail together: a rank that fails alone would leave the others
// waiting in the next collective.
#pragma once

#include <array>
#include <cstdint>

#include "parallel/communicator.h"
#include "test/support/catch.h"
#include "test/support/message_of.h"
#include "test/support/mpi_world.h"

namespace openmoe::test {

// True on every rank when `ok` is true on every rank.
inline bool all_ranks(bool ok, Communicator& comm = mpi().world()) {
  std::array<std::int64_t, 1> failed{ok ? 0 : 1};
  comm.all_reduce_max(failed);
  return failed[0] == 0;
}

}  // namespace openmoe::test

// Fails on every rank when the condition is false on any; the ranks where it is false show the
// expression.
#define REQUIRE_ALL_RANKS(condition)                      \
  do {                                                    \
    const bool holds_here = static_cast<bool>(condition); \
    INFO(#condition);                                     \
    CHECK(holds_here);                                    \
    REQUIRE(openmoe::test::all_ranks(holds_here));        \
  } while (false)
