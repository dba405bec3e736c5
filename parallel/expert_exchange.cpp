#include "parallel/expert_exchange.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/base/check.h"

namespace openmoe {

ExpertExchange::ExpertExchange(Ops& ops, std::unique_ptr<RoutingPlanner> planner,
                               Communicator& group, const ExchangeRoute& route)
    : ops_(ops),
      planner_(std::move(planner)),
      group_(group),
      transport_(make_row_transport(ops, route, group)),
      parts_(static_cast<std::size_t>(route.num_parts)) {
  OPENMOE_CHECK(planner_->ep() == group.size(), "a planner for ", planner_->ep(), " ranks");
  OPENMOE_CHECK(route.num_parts >= 1 && route.num_parts <= num_local_experts(), route.num_parts,
                " parts of ", num_local_experts(), " experts");
  next_expert_row_.reserve(static_cast<std::size_t>(num_local_experts()));
  const auto most = static_cast<std::size_t>(planner_->shape().num_experts);
  turned_.reserve(most);
  for (Part& part : parts_) {
    part.own.reserve(most);
    part.staged.reserve(most);
    for (auto* per_rank : {&part.sent, &part.sent_offsets, &part.received, &part.received_offsets})
      per_rank->resize(static_cast<std::size_t>(group.size()));
  }
}

void ExpertExchange::allocate_routing(Arena& arena, Routing& routing) {
  planner_->allocate(arena, routing);
}

void ExpertExchange::allocate_buffers(Arena& arena) {
  planner_->allocate_buffers(arena);
  std::vector<std::int64_t> rows_per_pair;
  bool needs_staging = false;
  for (std::int64_t part = 0; part < num_parts(); ++part) {
    rows_per_pair.push_back(planner_->max_rows_per_pair(experts_of(part)));
    needs_staging = needs_staging || (moves_rows() && !arrives_in_place(part));
  }
  const std::int64_t staged =
      needs_staging ? (planner_->ep() - 1) * planner_->max_rows_per_pair(num_local_experts()) : 0;
  staging_ = arena.allocate("staged rows", MemoryCategory::exchange, DType::f32,
                            {staged, planner_->shape().d_model});
  if (moves_rows())
    transport_->allocate_buffers(arena, rows_per_pair,
                                 planner_->shape().d_model * size_of(DType::f32));
}

void ExpertExchange::plan(Routing& routing, Tensor choice, Tensor slot) {
  planner_->plan_sent(routing, choice, slot);
  group_.all_to_all(routing.sent_per_expert, routing.received_per_source, num_local_experts());
  planner_->plan_received(routing);
}

void ExpertExchange::lay_out(const Routing& routing) {
  const std::int64_t local_experts = num_local_experts();
  next_expert_row_.assign(routing.expert_offsets.begin(), routing.expert_offsets.end() - 1);
  std::int64_t staged_row = 0;
  for (std::int64_t p = 0; p < num_parts(); ++p) {
    Part& part = at(p);
    part.own.clear();
    part.staged.clear();
    std::int64_t sent_row = 0;
    for (std::int64_t rank = 0; rank < planner_->ep(); ++rank) {
      const auto peer = static_cast<std::size_t>(rank);
      const bool is_own = rank == group_.rank_in_group();
      const std::int64_t* const sent = routing.sent_per_expert.data() + rank * local_experts;
      const std::int64_t* const received =
          routing.received_per_source.data() + rank * local_experts;
      const auto sum = [](const std::int64_t* counts, std::int64_t begin, std::int64_t end) {
        return std::accumulate(counts + begin, counts + end, std::int64_t{0});
      };
      const std::int64_t begin = part_begin(p), end = part_begin(p + 1);
      const std::int64_t first_sent = sent_row + sum(sent, 0, begin);
      const std::int64_t num_received = sum(received, begin, end);
      part.sent[peer] = is_own ? 0 : sum(sent, begin, end);
      part.sent_offsets[peer] = first_sent;
      part.received[peer] = is_own ? 0 : num_received;
      part.received_offsets[peer] =
          arrives_in_place(p) ? next_expert_row_[static_cast<std::size_t>(begin)] : staged_row;
      std::int64_t outer_row = is_own ? first_sent : staged_row;
      for (std::int64_t e = begin; e < end; ++e) {
        std::int64_t& expert_row = next_expert_row_[static_cast<std::size_t>(e)];
        if (received[e] > 0 && (is_own || !arrives_in_place(p)))
          (is_own ? part.own : part.staged).push_back({expert_row, outer_row, received[e]});
        outer_row += received[e];
        expert_row += received[e];
      }
      sent_row += sum(sent, 0, local_experts);
      if (!is_own) staged_row += num_received;
    }
  }
}

void ExpertExchange::copy_back(Tensor outer, Tensor expert_rows,
                               const std::vector<RowStretch>& stretches) {
  turned_.clear();
  for (const RowStretch& stretch : stretches)
    turned_.push_back({stretch.from, stretch.to, stretch.num_rows});
  ops_.copy_rows(outer, expert_rows, turned_);
}

void ExpertExchange::check_rows(const Tensor& sent, const Tensor& expert_rows,
                                const Routing& routing) const {
  OPENMOE_CHECK(sent.dtype == expert_rows.dtype && size_of(sent.dtype) <= size_of(DType::f32),
                name_of(sent.dtype), " and ", name_of(expert_rows.dtype));
  OPENMOE_CHECK(sent.shape.rank == 2 && sent.size(1) == planner_->shape().d_model &&
                    sent.size(0) >= routing.num_sent,
                sent.shape.to_string(), " for ", routing.num_sent, " rows of ",
                planner_->shape().d_model);
  OPENMOE_CHECK(expert_rows.shape.rank == 2 && expert_rows.size(1) == planner_->shape().d_model &&
                    expert_rows.size(0) >= routing.num_received,
                expert_rows.shape.to_string(), " for ", routing.num_received, " rows of ",
                planner_->shape().d_model);
}

void ExpertExchange::start_dispatch(Tensor sent, Tensor received, const Routing& routing,
                                    std::int64_t part) {
  check_rows(sent, received, routing);
  OPENMOE_CHECK(sent.data != received.data || routing.num_sent == 0, "rows cannot move in place");
  if (part == 0) lay_out(routing);
  transport_->start(part, sent, at(part).sent_blocks(), outer_rows(part, received),
                    at(part).received_blocks());
}

void ExpertExchange::finish_dispatch(Tensor sent, Tensor received, std::int64_t part) {
  transport_->finish(part, outer_rows(part, received), at(part).received_blocks());
  ops_.copy_rows(received, sent, at(part).own);
  if (!arrives_in_place(part)) ops_.copy_rows(received, staged_rows(received), at(part).staged);
}

void ExpertExchange::start_combine(Tensor rows, Tensor returned, const Routing& routing,
                                   std::int64_t part) {
  check_rows(returned, rows, routing);
  OPENMOE_CHECK(rows.data != returned.data || routing.num_received == 0,
                "rows cannot move in place");
  if (part == 0) lay_out(routing);
  copy_back(returned, rows, at(part).own);
  if (!arrives_in_place(part)) copy_back(staged_rows(rows), rows, at(part).staged);
  transport_->start(part, outer_rows(part, rows), at(part).received_blocks(), returned,
                    at(part).sent_blocks());
}

void ExpertExchange::finish_combine(Tensor returned, std::int64_t part) {
  transport_->finish(part, returned, at(part).sent_blocks());
}

}  // namespace openmoe
