// RowTransport: how rows travel between the ranks of an expert group. Every kind brings the same
// rows to the same places.
//   direct          one variable-size all-to-all of the group
//   fixed_capacity  one all-to-all of equal blocks, as large as two ranks may ever need, padded
//   two_level       first inside each node, to the rank whose place in its node is that of the
//                   receiver; then between the ranks of that place on all nodes. A rank then sends
//                   to as many others as there are nodes, not as there are ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/config/recipe.h"
#include "core/ops.h"
#include "parallel/communicator.h"

namespace openmoe {

struct ExchangeRoute {
  ExchangeKind kind = ExchangeKind::direct;  // not automatic
  std::int64_t ranks_per_node = 1;           // of the expert group; of two_level
  std::int64_t num_parts = 1;                // in which the experts of a rank are exchanged
};

// The kind that the recipe names; automatic: two_level where the ranks of the group lie in equal
// stretches on several hosts, more than one on each. Collective over the group. Throws the same
// UserError on all of its ranks when the nodes are not equal stretches and two_level was asked for.
ExchangeRoute choose_route(const ParallelConfig& config, Communicator& group);
// The same for a group of `size` ranks that nobody can ask, `hosts_stretch` of them on every host;
// 0: not known, where automatic is direct.
ExchangeRoute planned_route(const ParallelConfig& config, std::int64_t size,
                            std::int64_t hosts_stretch);

// How many ranks of the group are on each host, where every host has one equal stretch of them;
// else 0. Collective over the group.
std::int64_t ranks_per_host(Communicator& group);
// The same of the hosts of ranks, by rank.
std::int64_t equal_stretch(const std::vector<std::string>& hosts);

class RowTransport {
 public:
  virtual ~RowTransport() = default;
  // Room for as many exchanges at once as `rows_per_pair` has values: slot i is for at most
  // rows_per_pair[i] rows between any two ranks, of at most `row_bytes`.
  virtual void allocate_buffers(Arena& arena, std::span<const std::int64_t> rows_per_pair,
                                std::int64_t row_bytes) = 0;
  // As Communicator::start_all_to_all_rows, of tensors (rows, W); `received` and its blocks are
  // given again to finish(). Blocks have offsets; none goes from a rank to itself. Of two_level,
  // the step between nodes alone goes on in the background: it is the slow one.
  virtual void start(std::int64_t slot, Tensor sent, const RowBlocks& sent_blocks, Tensor received,
                     const RowBlocks& received_blocks) = 0;
  virtual void finish(std::int64_t slot, Tensor received, const RowBlocks& received_blocks) = 0;
  // As Communicator::advance, of what was started.
  virtual void advance() = 0;
};

// For tensors of `ops`, which are within reach of `group`; both must outlive it. Collective over
// the group.
std::unique_ptr<RowTransport> make_row_transport(Ops& ops, const ExchangeRoute& route,
                                                 Communicator& group);

}  // namespace openmoe
