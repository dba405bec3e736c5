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
  PlanExchange(const ExchangeShape& shape, std::int64_t num_moe_layers, Communicator& group,
               ExchangeKind kind, const RouteRows& rows)
      : group_(group), kind_(kind), rows_(rows), num_moe_layers_(num_moe_layers) {
    OPENMOE_CHECK(kind == ExchangeKind::direct || kind == ExchangeKind::fixed_capacity, "kind ",
                  static_cast<int>(kind));
    if (group.size() == 1 || num_moe_layers == 0)
      real_ = std::make_unique<LocalExchange>(shape);
    else
      real_ = std::make_unique<ExpertExchange>(shape, group, ExchangeRoute{kind, 1});
    // Handles point into it, so it must not move.
    offsets_.resize(static_cast<std::size_t>(num_moe_layers * (num_local_experts() + 1)));
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
    // The only tensor of the handle that the model reads itself.
    std::int64_t* const offsets = offsets_.data() + layer * (local + 1);
    routing.expert_offsets.data = offsets;
    offsets[0] = 0;
    for (std::int64_t e = 0; e < local; ++e) {
      offsets[e + 1] = offsets[e];
      for (std::int64_t r = 0; r < group_.size(); ++r)
        offsets[e + 1] += routing.received_per_source[static_cast<std::size_t>(r * local + e)];
    }
    routing.num_received = offsets[local];
  }

  Tensor dispatch(Tensor sent, Tensor buffer, const Routing& routing) override {
    if (group_.size() == 1) return sent;
    exchange(routing.sent_per_expert, sent.row_bytes());
    return buffer;
  }
  Tensor combine(Tensor rows, Tensor buffer, const Routing& routing) override {
    if (group_.size() == 1) return rows;
    exchange(routing.received_per_source, rows.row_bytes());
    return buffer;
  }

 private:
  // `rows` by (rank, expert of it); those of this rank do not travel.
  void exchange(const std::vector<std::int64_t>& rows, std::int64_t row_bytes) {
    const auto ranks = static_cast<std::size_t>(group_.size()), local = rows.size() / ranks;
    std::vector<std::int64_t> counts(ranks, 0);
    if (kind_ == ExchangeKind::fixed_capacity)
      std::fill(counts.begin(), counts.end(), max_received() / group_.size());
    else
      for (std::size_t i = 0; i < rows.size(); ++i) counts[i / local] += rows[i];
    counts[static_cast<std::size_t>(group_.rank_in_group())] = 0;
    group_.all_to_all_rows(nullptr, {counts, {}}, nullptr, {counts, {}}, row_bytes);
  }

  Communicator& group_;
  ExchangeKind kind_;
  const RouteRows& rows_;
  std::int64_t num_moe_layers_, num_plans_ = 0;
  std::unique_ptr<TokenExchange> real_;
  std::vector<std::int64_t> offsets_;
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

std::unique_ptr<TokenExchange> make_plan_exchange(const ExchangeShape& shape,
                                                  std::int64_t num_moe_layers, Communicator& group,
                                                  ExchangeKind kind, const RouteRows& rows) {
  return std::make_unique<PlanExchange>(shape, num_moe_layers, group, kind, rows);
}

std::unique_ptr<TensorGroup> make_plan_tensor_group(Communicator& group) {
  if (group.size() == 1) return std::make_unique<LocalTensorGroup>();
  return std::make_unique<PlanTensorGroup>(group);
}

}  // namespace openmoe
