#include "parallel/sharded_update.h"

#include <array>
#include <cmath>
#include <span>

#include "core/base/check.h"
#include "core/train/adafactor.h"
#include "parallel/gradient_reducer.h"

namespace openmoe {
namespace {

template <typename T>
std::span<T> elements(const Tensor& tensor) {
  return {tensor.as<T>(), static_cast<std::size_t>(tensor.num_elements())};
}

// Elements of the local slice that are each holder's own.
std::vector<std::int64_t> pieces(const Param& param, std::int64_t ranks) {
  const std::int64_t units = param.local_shape[param.own.axis];
  const std::int64_t width = units == 0 ? 0 : param.local_shape.num_elements() / units;
  std::vector<std::int64_t> counts;
  for (std::int64_t r = 0; r < ranks; ++r)
    counts.push_back((units * (r + 1) / ranks - units * r / ranks) * width);
  return counts;
}

}  // namespace

void gather_operands(ParamTable& params, ProcessGrid& grid) {
  for (const Param& param : params.params()) {
    if (!param.is_value_divided) continue;
    Communicator& holders = grid.holders(param.sharding);
    holders.all_gather(elements<BFloat16>(param.operand), pieces(param, holders.size()));
  }
}

ShardedUpdate::ShardedUpdate(Ops& ops, ParamTable& params, ProcessGrid& grid, TensorGroup& tensor)
    : ops_(ops), params_(params), grid_(grid), tensor_(tensor) {
  for (const Param& param : params.params()) {
    shards_.push_back(make_shard(param));
    grads_.push_back(shards_.back().part.grad);
  }
  squares_of_grads_.resize(grads_.size());
}

ShardedUpdate::Shard ShardedUpdate::make_shard(const Param& param) {
  Shard shard;
  shard.part = param;
  shard.is_shared = param.tensor_slice.axis >= 0;
  shard.shared = shared_matrix(param, tensor_);
  shard.is_divided = param.own.axis >= 0;
  if (!shard.is_divided) return shard;
  Communicator& holders = grid_.holders(param.sharding);
  shard.values = pieces(param, holders.size());
  if (!(param.factored && param.stack() > 1)) {
    // The holders of a replicated parameter are all ranks: the tensor group is among them.
    const bool is_sliced = shard.is_shared;
    shard.is_shared = true;
    shard.shared.axis = SharedMatrix::Axis::rows;
    shard.shared.sum = [this, &holders, is_sliced](std::span<double> values) {
      if (is_sliced) tensor_.sum(values);
      holders.all_reduce_sum(values);
    };
  }
  Param& part = shard.part;
  part.grad = param.own_of(param.grad);
  part.local_shape = part.grad.shape;
  part.value = param.is_value_divided ? param.value : param.own_of(param.value);
  // The rounded copy of a value that is whole follows when it is whole again.
  part.operand = param.is_value_divided ? param.own_of(param.operand) : part.value;
  part.own = {};
  part.is_value_divided = false;
  OPENMOE_CHECK(
      part.grad.num_elements() == shard.values[static_cast<std::size_t>(holders.rank_in_group())],
      param.name, ": the table is for another place in the grid");
  return shard;
}

void ShardedUpdate::reduce() {
  for (const Shard& shard : shards_) {
    const std::size_t index = static_cast<std::size_t>(&shard - shards_.data());
    const Param& whole = params_.params()[index];
    Communicator& holders = grid_.holders(whole.sharding);
    if (shard.is_divided)
      holders.reduce_scatter_sum(elements<float>(whole.grad), shard.values);
    else if (holders.size() > 1)
      holders.all_reduce_sum(elements<float>(whole.grad));
  }
}

bool ShardedUpdate::is_finite(std::size_t index) const {
  return std::isfinite(ops_.sum_of_squares(shards_[index].part.grad));
}

double ShardedUpdate::grad_norm() {
  // Of divided parameters, and of those that all holders have whole.
  std::array<double, kShardings.size()> divided{}, whole{};
  ops_.sums_of_squares(squares_of_grads_, grads_);
  for (std::size_t i = 0; i < shards_.size(); ++i)
    (shards_[i].is_divided ? divided : whole)[static_cast<std::size_t>(shards_[i].part.sharding)] +=
        squares_of_grads_[i];
  for (const Sharding sharding : kShardings) {
    const auto at = static_cast<std::size_t>(sharding);
    grid_.holders(sharding).all_reduce_sum(std::span<double>(&divided[at], 1));
    whole[at] += divided[at];
  }
  return total_norm(whole, grid_);
}

void ShardedUpdate::update(const OptimizerConfig& config, std::int64_t step) {
  ops_.enter("optimizer");
  for (Shard& shard : shards_) {
    Param& whole = params_.params()[static_cast<std::size_t>(&shard - shards_.data())];
    adafactor_update(ops_, shard.part, config, step, shard.is_shared ? &shard.shared : nullptr);
    if (!shard.is_divided) continue;
    Communicator& holders = grid_.holders(whole.sharding);
    if (whole.is_value_divided) {
      holders.all_gather(elements<BFloat16>(whole.operand), shard.values);
    } else {
      holders.all_gather(elements<float>(whole.value), shard.values);
      whole.round_operand(ops_);
    }
  }
}

}  // namespace openmoe
