// ExpertExchange: the token exchange of ranks that each hold a part of the experts, by an
// all-to-all over the ep group, of the kind that the recipe names (row_transport.h). Host memory.
// Counts travel in plan(), rows in dispatch and combine; rows that stay on their rank are copied
// straight to their place.
//
//   dispatch:  sent (expert major, so one block per peer) ==all_to_all==> staged by (source, local
//              expert) --copy--> by (local expert, source)
//   combine:   the same way back
//
// and so for every part of the local experts. With one expert to a part both orders are the same
// and rows arrive in place without staging.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/moe/routing_plan.h"
#include "parallel/communicator.h"
#include "parallel/row_transport.h"

namespace openmoe {

class ExpertExchange : public TokenExchange {
 public:
  // `group` are the ep ranks, and must outlive this. Every rank of it must have the same shape and
  // route, of at most as many parts as a rank has experts.
  ExpertExchange(const ExchangeShape& shape, Communicator& group, const ExchangeRoute& route = {});

  std::int64_t num_local_experts() const override { return planner_.num_local_experts(); }
  std::int64_t max_sent() const override { return planner_.shape().max_sent(); }
  std::int64_t max_received() const override { return planner_.max_received(); }
  void allocate_routing(Arena& arena, Routing& routing) override;
  void allocate_buffers(Arena& arena) override;

  void plan(Routing& routing, Tensor choice, Tensor slot) override;
  std::int64_t num_parts() const override { return std::ssize(parts_); }
  bool moves_rows() const override { return planner_.ep() > 1; }
  void start_dispatch(Tensor sent, Tensor received, const Routing& routing,
                      std::int64_t part) override;
  void finish_dispatch(Tensor sent, Tensor received, std::int64_t part) override;
  void start_combine(Tensor rows, Tensor returned, const Routing& routing,
                     std::int64_t part) override;
  void finish_combine(Tensor returned, std::int64_t part) override;
  void advance() override { transport_->advance(); }

 private:
  // Rows of one (source, local expert) pair that a copy must bring to their place: where they lie
  // in the send order of this rank (its own rows) or in the staging buffer (rows of others), and
  // where in expert order.
  struct Block {
    bool is_own = false;
    std::int64_t outer_row = 0;
    std::int64_t expert_row = 0;
    std::int64_t num_rows = 0;
  };
  struct Part {
    std::vector<Block> blocks;
    std::int64_t block_rows = 0;  // rows of all blocks
    // Per rank of the group; nothing is exchanged with oneself.
    std::vector<std::int64_t> sent, sent_offsets, received, received_offsets;

    RowBlocks sent_blocks() const { return {sent, sent_offsets}; }
    RowBlocks received_blocks() const { return {received, received_offsets}; }
  };

  Part& at(std::int64_t part) { return parts_[static_cast<std::size_t>(part)]; }
  std::int64_t experts_of(std::int64_t part) const {
    return part_begin(part + 1) - part_begin(part);
  }
  // With one expert in a part, received rows are in expert order as they come.
  bool arrives_in_place(std::int64_t part) const { return experts_of(part) == 1; }
  // Fills all parts from a handle.
  void lay_out(const Routing& routing);
  void check_rows(const Tensor& sent, const Tensor& expert_rows, const Routing& routing) const;
  // Copies all blocks between their outer place (in `sent` or staging) and expert order.
  enum class Direction { to_experts, from_experts };
  void copy_blocks(Direction direction, const Part& part, const Tensor& sent,
                   const Tensor& expert_rows) const;
  // Where rows of other ranks arrive and leave.
  void* outer_rows(std::int64_t part, const Tensor& expert_rows) const {
    return arrives_in_place(part) ? expert_rows.data : staging_.data;
  }

  RoutingPlanner planner_;
  Communicator& group_;
  std::unique_ptr<RowTransport> transport_;
  Tensor staging_;  // (rows of other ranks, D)
  std::vector<Part> parts_;
  std::vector<std::int64_t> next_expert_row_;  // (El), while laying out
};

}  // namespace openmoe
