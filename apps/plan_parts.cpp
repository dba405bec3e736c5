#include "apps/plan_parts.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

#include "core/base/check.h"
#include "core/moe/local_exchange.h"
#include "parallel/expert_exchange.h"

namespace openmoe {
namespace {

// Sizes and memory are the real exchange's; rows are counted.
class PlanExchange : public TokenExchange {
 public:
  PlanExchange(Ops& ops, const ExchangeShape& shape, std::int64_t num_moe_layers,
               Communicator& group, const ExchangeRoute& route, const RouteRows& rows)
      : planner_(shape, group.size()),
        group_(group),
        kind_(route.kind),
        rows_(rows),
        num_moe_layers_(num_moe_layers) {
    OPENMOE_CHECK(kind_ == ExchangeKind::direct || kind_ == ExchangeKind::fixed_capacity, "kind ",
                  static_cast<int>(kind_));
    if (group.size() == 1 || num_moe_layers == 0)
      real_ = std::make_unique<LocalExchange>(shape);
    else
      real_ = std::make_unique<ExpertExchange>(
          ops, std::make_unique<RoutingPlanner>(shape, group.size()), group, route);
  }

  std::int64_t num_local_experts() const override { return real_->num_local_experts(); }
  std::int64_t max_sent() const override { return real_->max_sent(); }
  std::int64_t max_received() const override { return real_->max_received(); }
  void allocate_routing(Arena& arena, Routing& routing) override {
    real_->allocate_routing(arena, routing);
  }
  void allocate_buffers(Arena& arena) override { real_->allocate_buffers(arena); }

  void plan(Routing& routing, Tensor, Tensor) override {
    const std::int64_t layer = num_plans_ % num_moe_layers_, local = num_local_experts();
    rows_(num_plans_ / num_moe_layers_, layer, routing.sent_per_expert,
          routing.received_per_source);
    ++num_plans_;
    if (group_.size() > 1)
      group_.all_to_all(routing.sent_per_expert, routing.received_per_source, local);
    else
      routing.received_per_source = routing.sent_per_expert;
    routing.num_sent = std::accumulate(routing.sent_per_expert.begin(),
                                       routing.sent_per_expert.end(), std::int64_t{0});
    std::int64_t* const offsets = routing.expert_offsets.data();
    offsets[0] = 0;
    for (std::int64_t e = 0; e < local; ++e) {
      offsets[e + 1] = offsets[e];
      for (std::int64_t r = 0; r < group_.size(); ++r)
        offsets[e + 1] += routing.received_per_source[static_cast<std::size_t>(r * local + e)];
    }
    routing.num_received = offsets[local];
  }

  std::int64_t num_parts() const override { return real_->num_parts(); }
  bool moves_rows() const override { return real_->moves_rows(); }
  void start_dispatch(Tensor sent, Tensor, const Routing& routing, std::int64_t part) override {
    start(routing.sent_per_expert, sent.row_bytes(), part);
  }
  void finish_dispatch(Tensor, Tensor, std::int64_t part) override { group_.wait_for_rows(part); }
  void start_combine(Tensor rows, Tensor, const Routing& routing, std::int64_t part) override {
    start(routing.received_per_source, rows.row_bytes(), part);
  }
  void finish_combine(Tensor, std::int64_t part) override { group_.wait_for_rows(part); }

 private:
  // `rows` by (rank, expert of it); those of this rank do not travel.
  void start(const std::vector<std::int64_t>& rows, std::int64_t row_bytes, std::int64_t part) {
    std::vector<std::int64_t> counts(static_cast<std::size_t>(group_.size()), 0);
    for (std::size_t rank = 0; rank < counts.size(); ++rank) {
      if (static_cast<int>(rank) == group_.rank_in_group()) continue;
      const auto first = rows.begin() + static_cast<std::int64_t>(rank) * num_local_experts();
      const std::int64_t begin = part_begin(part), end = part_begin(part + 1);
      counts[rank] = kind_ == ExchangeKind::fixed_capacity
                         ? planner_.max_rows_per_pair(end - begin)
                         : std::accumulate(first + begin, first + end, std::int64_t{0});
    }
    group_.start_all_to_all_rows(part, nullptr, {counts, {}}, nullptr, {counts, {}}, row_bytes);
  }

  RoutingPlanner planner_;
  Communicator& group_;
  ExchangeKind kind_;
  const RouteRows& rows_;
  std::int64_t num_moe_layers_, num_plans_ = 0;
  std::unique_ptr<TokenExchange> real_;
};

class PlanTensorGroup : public TensorGroup {
 public:
  explicit PlanTensorGroup(Communicator& group) : group_(group) {}

  std::int64_t size() const override { return group_.size(); }
  std::int64_t rank() const override { return group_.rank_in_group(); }
  void allocate_buffers(Arena&, std::int64_t, std::int64_t) override {}

  void gather_rows(Tensor x) override { send(x.size(0) / size(), x.row_bytes()); }
  void sum_rows(Tensor x) override { send(x.size(0) / size(), x.row_bytes()); }
  void rows_to_columns(Tensor columns, Tensor rows) override {
    send(rows.size(0), columns.row_bytes());
  }
  void columns_to_rows(Tensor rows, Tensor columns) override {
    send(rows.size(0), columns.row_bytes());
  }
  void gather_columns(Tensor whole, Tensor columns) override {
    send(whole.size(0), columns.row_bytes());
  }
  void sum_columns(Tensor columns, Tensor partial) override {
    send(partial.size(0), columns.size(1) * size_of(DType::f32));
  }
  void sum(Tensor x) override { send(1, x.size_bytes()); }
  void sum(std::span<double> values) override { group_.all_reduce_sum(values); }
  void combine(std::span<LogitSums> sums) override {
    send(static_cast<std::int64_t>(sums.size()), sizeof(LogitSums));
  }

 private:
  // `rows` to each of the others.
  void send(std::int64_t rows, std::int64_t row_bytes) {
    counts_.assign(static_cast<std::size_t>(size()), rows);
    counts_[static_cast<std::size_t>(rank())] = 0;
    group_.all_to_all_rows(nullptr, {counts_, {}}, nullptr, {counts_, {}}, row_bytes);
  }

  Communicator& group_;
  std::vector<std::int64_t> counts_;
};

}  // namespace

std::unique_ptr<TokenExchange> make_plan_exchange(Ops& ops, const ExchangeShape& shape,
                                                  std::int64_t num_moe_layers, Communicator& group,
                                                  const ExchangeRoute& route,
                                                  const RouteRows& rows) {
  return std::make_unique<PlanExchange>(ops, shape, num_moe_layers, group, route, rows);
}

std::unique_ptr<TensorGroup> make_plan_tensor_group(Communicator& group) {
  if (group.size() == 1) return std::make_unique<LocalTensorGroup>();
  return std::make_unique<PlanTensorGroup>(group);
}

}  // namespace openmoe
