#include "parallel/expert_exchange.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/base/check.h"

namespace openmoe {
namespace {

char* row_at(const Tensor& rows, std::int64_t row) {
  return static_cast<char*>(rows.data) + row * rows.row_bytes();
}

}  // namespace

ExpertExchange::ExpertExchange(const ExchangeShape& shape, Communicator& group,
                               const ExchangeRoute& route)
    : planner_(shape, group.size()),
      group_(group),
      transport_(make_row_transport(route, group)),
      parts_(static_cast<std::size_t>(route.num_parts)) {
  OPENMOE_CHECK(route.num_parts >= 1 && route.num_parts <= num_local_experts(), route.num_parts,
                " parts of ", num_local_experts(), " experts");
  next_expert_row_.reserve(static_cast<std::size_t>(num_local_experts()));
  for (Part& part : parts_) {
    part.blocks.reserve(static_cast<std::size_t>(shape.num_experts));
    for (auto* per_rank : {&part.sent, &part.sent_offsets, &part.received, &part.received_offsets})
      per_rank->resize(static_cast<std::size_t>(group.size()));
  }
}

void ExpertExchange::allocate_routing(Arena& arena, Routing& routing) {
  planner_.allocate(arena, routing);
}

void ExpertExchange::allocate_buffers(Arena& arena) {
  std::vector<std::int64_t> rows_per_pair;
  bool needs_staging = false;
  for (std::int64_t part = 0; part < num_parts(); ++part) {
    rows_per_pair.push_back(planner_.max_rows_per_pair(experts_of(part)));
    needs_staging = needs_staging || (moves_rows() && !arrives_in_place(part));
  }
  const std::int64_t staged =
      needs_staging ? (planner_.ep() - 1) * planner_.max_rows_per_pair(num_local_experts()) : 0;
  staging_ = arena.allocate("staged rows", MemoryCategory::exchange, DType::f32,
                            {staged, planner_.shape().d_model});
  if (moves_rows())
    transport_->allocate_buffers(arena, rows_per_pair,
                                 planner_.shape().d_model * size_of(DType::f32));
}

void ExpertExchange::plan(Routing& routing, Tensor choice, Tensor slot) {
  planner_.plan_sent(routing, host_elements<std::int32_t>(choice),
                     host_elements<std::int32_t>(slot),
                     host_elements<std::int32_t>(routing.row_token),
                     host_elements<std::int32_t>(routing.assignment_row));
  group_.all_to_all(routing.sent_per_expert, routing.received_per_source, num_local_experts());
  planner_.plan_received(routing);
}

void ExpertExchange::lay_out(const Routing& routing) {
  const std::int64_t local_experts = num_local_experts();
  const auto offsets = host_elements<std::int64_t>(routing.expert_offsets);
  next_expert_row_.assign(offsets.begin(), offsets.end() - 1);
  std::int64_t staged_row = 0;
  for (std::int64_t p = 0; p < num_parts(); ++p) {
    Part& part = at(p);
    part.blocks.clear();
    part.block_rows = 0;
    std::int64_t sent_row = 0;
    for (std::int64_t rank = 0; rank < planner_.ep(); ++rank) {
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
        if (received[e] > 0 && (is_own || !arrives_in_place(p))) {
          part.blocks.push_back({is_own, outer_row, expert_row, received[e]});
          part.block_rows += received[e];
        }
        outer_row += received[e];
        expert_row += received[e];
      }
      sent_row += sum(sent, 0, local_experts);
      if (!is_own) staged_row += num_received;
    }
  }
}

void ExpertExchange::copy_blocks(Direction direction, const Part& part, const Tensor& sent,
                                 const Tensor& expert_rows) const {
  constexpr std::int64_t kBytesWorthThreads = 1 << 17;
  const std::int64_t row_bytes = sent.row_bytes();
#pragma omp parallel if (part.block_rows * row_bytes >= kBytesWorthThreads)
  {
    // The rows of all blocks together are divided evenly, since the loads of experts differ widely.
    const std::int64_t threads = omp_get_num_threads();
    const std::int64_t thread = omp_get_thread_num();
    const std::int64_t begin = part.block_rows * thread / threads;
    const std::int64_t end = part.block_rows * (thread + 1) / threads;
    std::int64_t first = 0;  // of the block, among the rows of all blocks
    for (const Block& block : part.blocks) {
      const std::int64_t from = std::max(begin - first, std::int64_t{0});
      const std::int64_t to = std::min(end - first, block.num_rows);
      first += block.num_rows;
      if (from >= to) continue;
      char* outer =
          (block.is_own ? static_cast<char*>(sent.data) : static_cast<char*>(staging_.data)) +
          (block.outer_row + from) * row_bytes;
      char* inner = row_at(expert_rows, block.expert_row + from);
      const auto bytes = static_cast<std::size_t>((to - from) * row_bytes);
      if (direction == Direction::to_experts)
        std::memcpy(inner, outer, bytes);
      else
        std::memcpy(outer, inner, bytes);
    }
  }
}

void ExpertExchange::check_rows(const Tensor& sent, const Tensor& expert_rows,
                                const Routing& routing) const {
  OPENMOE_CHECK(sent.device == Device::host && expert_rows.device == Device::host,
                "rows of a device");
  OPENMOE_CHECK(sent.dtype == expert_rows.dtype && size_of(sent.dtype) <= size_of(DType::f32),
                name_of(sent.dtype), " and ", name_of(expert_rows.dtype));
  OPENMOE_CHECK(sent.shape.rank == 2 && sent.size(1) == planner_.shape().d_model &&
                    sent.size(0) >= routing.num_sent,
                sent.shape.to_string(), " for ", routing.num_sent, " rows of ",
                planner_.shape().d_model);
  OPENMOE_CHECK(expert_rows.shape.rank == 2 && expert_rows.size(1) == planner_.shape().d_model &&
                    expert_rows.size(0) >= routing.num_received,
                expert_rows.shape.to_string(), " for ", routing.num_received, " rows of ",
                planner_.shape().d_model);
}

void ExpertExchange::start_dispatch(Tensor sent, Tensor received, const Routing& routing,
                                    std::int64_t part) {
  check_rows(sent, received, routing);
  OPENMOE_CHECK(sent.data != received.data || routing.num_sent == 0, "rows cannot move in place");
  if (part == 0) lay_out(routing);
  transport_->start(part, sent.data, at(part).sent_blocks(), outer_rows(part, received),
                    at(part).received_blocks(), sent.row_bytes());
}

void ExpertExchange::finish_dispatch(Tensor sent, Tensor received, std::int64_t part) {
  transport_->finish(part, outer_rows(part, received), at(part).received_blocks(),
                     sent.row_bytes());
  copy_blocks(Direction::to_experts, at(part), sent, received);
}

void ExpertExchange::start_combine(Tensor rows, Tensor returned, const Routing& routing,
                                   std::int64_t part) {
  check_rows(returned, rows, routing);
  OPENMOE_CHECK(rows.data != returned.data || routing.num_received == 0,
                "rows cannot move in place");
  if (part == 0) lay_out(routing);
  copy_blocks(Direction::from_experts, at(part), returned, rows);
  transport_->start(part, outer_rows(part, rows), at(part).received_blocks(), returned.data,
                    at(part).sent_blocks(), rows.row_bytes());
}

void ExpertExchange::finish_combine(Tensor returned, std::int64_t part) {
  transport_->finish(part, returned.data, at(part).sent_blocks(), returned.row_bytes());
}

}  // namespace openmoe
