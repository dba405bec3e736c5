// ExpertExchange: the token exchange of ranks that each hold a part of the experts, by an
// all-to-all over the ep group, of the kind that the recipe names (row_transport.h). Counts travel
// in plan(), rows in dispatch and combine; rows that stay on their rank are copied straight to
// their place.
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
#include "core/ops.h"
#include "parallel/communicator.h"
#include "parallel/row_transport.h"

namespace openmoe {

class ExpertExchange : public TokenExchange {
 public:
  // Tensors are those of `ops`. `group` are the ep ranks, within whose reach they are; both must
  // outlive this. Every rank must have the same shape and route, of at most as many parts as a rank
  // has experts.
  ExpertExchange(Ops& ops, std::unique_ptr<RoutingPlanner> planner, Communicator& group,
                 const ExchangeRoute& route = {});

  std::int64_t num_local_experts() const override { return planner_->num_local_experts(); }
  std::int64_t max_sent() const override { return planner_->shape().max_sent(); }
  std::int64_t max_received() const override { return planner_->max_received(); }
  void allocate_routing(Arena& arena, Routing& routing) override;
  void allocate_buffers(Arena& arena) override;

  void plan(Routing& routing, Tensor choice, Tensor slot) override;
  std::int64_t num_parts() const override { return std::ssize(parts_); }
  bool moves_rows() const override { return planner_->ep() > 1; }
  void start_dispatch(Tensor sent, Tensor received, const Routing& routing,
                      std::int64_t part) override;
  void finish_dispatch(Tensor sent, Tensor received, std::int64_t part) override;
  void start_combine(Tensor rows, Tensor returned, const Routing& routing,
                     std::int64_t part) override;
  void finish_combine(Tensor returned, std::int64_t part) override;
  void advance() override { transport_->advance(); }

 private:
  struct Part {
    // Rows of each (source, local expert) pair, from where they lie to expert order: from the send
    // order of this rank, and from the staged rows of others.
    std::vector<RowStretch> own, staged;
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
  // Where rows of other ranks arrive and leave.
  Tensor outer_rows(std::int64_t part, const Tensor& expert_rows) const {
    return arrives_in_place(part) ? expert_rows : staged_rows(expert_rows);
  }
  Tensor staged_rows(const Tensor& like) const {
    return {staging_.data, like.dtype, staging_.device, staging_.shape};
  }
  // From expert order to where they came from.
  void copy_back(Tensor outer, Tensor expert_rows, const std::vector<RowStretch>& stretches);

  Ops& ops_;
  std::unique_ptr<RoutingPlanner> planner_;
  Communicator& group_;
  std::unique_ptr<RowTransport> transport_;
  Tensor staging_;  // (rows of other ranks, D)
  std::vector<Part> parts_;
  std::vector<std::int64_t> next_expert_row_;  // (El), while laying out
  std::vector<RowStretch> turned_;             // of copy_back
};

}  // namespace openmoe
