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
    : planner_(shape, group.size()), group_(group), transport_(make_row_transport(route, group)) {
  const auto ranks = static_cast<std::size_t>(group.size());
  next_expert_row_.reserve(static_cast<std::size_t>(num_local_experts()));
  blocks_.reserve(static_cast<std::size_t>(shape.num_experts));
  for (auto* per_rank :
       {&peer_sent_, &peer_sent_offsets_, &peer_received_, &peer_received_offsets_})
    per_rank->resize(ranks);
}

void ExpertExchange::allocate_routing(Arena& arena, Routing& routing) {
  planner_.allocate(arena, routing);
}

void ExpertExchange::allocate_buffers(Arena& arena) {
  const bool needs_staging = planner_.ep() > 1 && !arrives_in_place();
  const std::int64_t rows = needs_staging ? (planner_.ep() - 1) * planner_.max_rows_per_pair() : 0;
  staging_ = arena.allocate("staged rows", MemoryCategory::exchange, DType::f32,
                            {rows, planner_.shape().d_model});
  if (planner_.ep() > 1)
    transport_->allocate_buffers(arena, planner_.shape().max_sent(), planner_.max_rows_per_pair(),
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
  const std::int64_t self = group_.rank_in_group();
  const auto offsets = host_elements<std::int64_t>(routing.expert_offsets);
  next_expert_row_.assign(offsets.begin(), offsets.end() - 1);
  blocks_.clear();
  block_rows_ = 0;
  std::int64_t sent_row = 0, staged_row = 0;
  for (std::int64_t rank = 0; rank < planner_.ep(); ++rank) {
    const auto peer = static_cast<std::size_t>(rank);
    const std::int64_t* sent = routing.sent_per_expert.data() + rank * local_experts;
    const std::int64_t* received = routing.received_per_source.data() + rank * local_experts;
    const std::int64_t rows_sent = std::accumulate(sent, sent + local_experts, std::int64_t{0});
    const std::int64_t rows_received =
        std::accumulate(received, received + local_experts, std::int64_t{0});
    const bool is_own = rank == self;
    peer_sent_[peer] = is_own ? 0 : rows_sent;
    peer_sent_offsets_[peer] = sent_row;
    peer_received_[peer] = is_own ? 0 : rows_received;
    peer_received_offsets_[peer] = arrives_in_place() ? next_expert_row_[0] : staged_row;

    std::int64_t outer_row = is_own ? sent_row : staged_row;
    for (std::int64_t e = 0; e < local_experts; ++e) {
      std::int64_t& expert_row = next_expert_row_[static_cast<std::size_t>(e)];
      if (received[e] > 0 && (is_own || !arrives_in_place())) {
        blocks_.push_back({is_own, outer_row, expert_row, received[e]});
        block_rows_ += received[e];
      }
      outer_row += received[e];
      expert_row += received[e];
    }
    sent_row += rows_sent;
    if (!is_own) staged_row += rows_received;
  }
}

void ExpertExchange::copy_blocks(Direction direction, const Tensor& sent,
                                 const Tensor& expert_rows) const {
  constexpr std::int64_t kBytesWorthThreads = 1 << 17;
  const std::int64_t row_bytes = sent.row_bytes();
#pragma omp parallel if (block_rows_ * row_bytes >= kBytesWorthThreads)
  {
    // The rows of all blocks together are divided evenly, since the loads of experts differ widely.
    const std::int64_t threads = omp_get_num_threads();
    const std::int64_t thread = omp_get_thread_num();
    const std::int64_t begin = block_rows_ * thread / threads;
    const std::int64_t end = block_rows_ * (thread + 1) / threads;
    std::int64_t first = 0;  // of the block, among the rows of all blocks
    for (const Block& block : blocks_) {
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

Tensor ExpertExchange::dispatch(Tensor sent, Tensor buffer, const Routing& routing) {
  if (planner_.ep() == 1) return sent;
  check_rows(sent, buffer, routing);
  OPENMOE_CHECK(sent.data != buffer.data || routing.num_sent == 0, "rows cannot move in place");
  lay_out(routing);
  transport_->exchange(sent.data, {peer_sent_, peer_sent_offsets_},
                       arrives_in_place() ? buffer.data : staging_.data,
                       {peer_received_, peer_received_offsets_}, sent.row_bytes());
  copy_blocks(Direction::to_experts, sent, buffer);
  return buffer;
}

Tensor ExpertExchange::combine(Tensor rows, Tensor buffer, const Routing& routing) {
  if (planner_.ep() == 1) return rows;
  check_rows(buffer, rows, routing);
  OPENMOE_CHECK(rows.data != buffer.data || routing.num_received == 0, "rows cannot move in place");
  lay_out(routing);
  copy_blocks(Direction::from_experts, buffer, rows);
  transport_->exchange(arrives_in_place() ? rows.data : staging_.data,
                       {peer_received_, peer_received_offsets_}, buffer.data,
                       {peer_sent_, peer_sent_offsets_}, rows.row_bytes());
  return buffer;
}

}  // namespace openmoe
