#include "parallel/sharded_update.h"

#include <array>
#include <cmath>
#include <span>

#include "core/base/check.h"
#include "core/train/adafactor.h"
#include "parallel/gradient_reducer.h"

namespace openmoe {
namespace {

std::span<float> elements(const Tensor& tensor) {
  return {tensor.as<float>(), static_cast<std::size_t>(tensor.num_elements())};
}

// Piece r of `total` units of `width` elements each over `ranks`.
std::vector<std::int64_t> pieces(std::int64_t total, std::int64_t width, std::int64_t ranks) {
  std::vector<std::int64_t> counts;
  for (std::int64_t r = 0; r < ranks; ++r)
    counts.push_back((total * (r + 1) / ranks - total * r / ranks) * width);
  return counts;
}

// Elements [begin, begin + shape's) of a tensor as a tensor of their own.
Tensor part_of(const Tensor& whole, std::int64_t begin, const Shape& shape) {
  Tensor part = whole;
  part.data = whole.as<float>() + begin;
  part.shape = shape;
  return part;
}

}  // namespace

ShardedUpdate::ShardedUpdate(Ops& ops, ParamTable& params, ProcessGrid& grid, TensorGroup& tensor)
    : ops_(ops), params_(params), grid_(grid), tensor_(tensor) {
  OPENMOE_CHECK(params.params().front().grad.device == Device::host, "gradients of a device");
  for (const Param& param : params.params()) shards_.push_back(make_shard(param));
}

ShardedUpdate::Shard ShardedUpdate::make_shard(const Param& param) {
  Shard shard;
  shard.part = param;
  shard.is_shared = param.tensor_slice.axis >= 0;
  shard.shared = shared_matrix(param, tensor_);
  Communicator& holders = grid_.holders(param.sharding);
  const std::int64_t ranks = holders.size(), rank = holders.rank_in_group();
  const Shape matrices = param.as_matrices();
  const std::int64_t S = matrices[0], R = matrices[1], C = matrices[2];
  const bool is_shared_by_columns =
      param.tensor_slice.axis == param.global_shape.rank - 1 && param.tensor_slice.axis > 0;
  const bool by_experts = param.factored && S > 1 && S % ranks == 0;
  const bool by_rows = param.factored && S == 1 && R >= ranks && !is_shared_by_columns;
  if (ranks == 1 || (param.factored && !by_experts && !by_rows)) return shard;

  Param& part = shard.part;
  const std::int64_t units = by_experts ? S : by_rows ? R : param.local_shape.num_elements();
  const std::int64_t width = by_experts ? R * C : by_rows ? C : 1;
  const std::int64_t first = units * rank / ranks, count = units * (rank + 1) / ranks - first;
  shard.is_divided = true;
  if (!by_experts) {
    // The holders of a replicated parameter are all ranks: the tensor group is among them.
    const bool is_sliced = shard.is_shared;
    shard.is_shared = true;
    shard.shared.axis = SharedMatrix::Axis::rows;
    shard.shared.sum = [this, &holders, is_sliced](std::span<double> values) {
      if (is_sliced) tensor_.sum(values);
      holders.all_reduce_sum(values);
    };
  }
  shard.values = pieces(units, width, ranks);
  part.local_shape = by_experts ? Shape{count, R, C} : by_rows ? Shape{count, C} : Shape{count};
  part.value = part_of(param.value, first * width, part.local_shape);
  part.grad = part_of(param.grad, first * width, part.local_shape);
  part.operand = part.value;  // the rounded copy follows when the value is whole
  if (!param.factored) {
    part.stat_row = part_of(param.stat_row, first, part.local_shape);
    shard.row_statistics = shard.values;
    return shard;
  }
  const std::int64_t row_width = by_experts ? R : 1;
  part.stat_row =
      part_of(param.stat_row, first * row_width, by_experts ? Shape{count, R} : Shape{1, count});
  shard.row_statistics = pieces(units, row_width, ranks);
  if (by_experts) {
    part.stat_col = part_of(param.stat_col, first * C, {count, C});
    shard.col_statistics = pieces(units, C, ranks);
  }
  return shard;
}

void ShardedUpdate::reduce() {
  for (const Shard& shard : shards_) {
    const std::size_t index = static_cast<std::size_t>(&shard - shards_.data());
    const Param& whole = params_.params()[index];
    Communicator& holders = grid_.holders(whole.sharding);
    if (shard.is_divided)
      holders.reduce_scatter_sum(elements(whole.grad), shard.values);
    else
      holders.all_reduce_sum(elements(whole.grad));
  }
}

bool ShardedUpdate::is_finite(std::size_t index) const {
  return std::isfinite(ops_.sum_of_squares(shards_[index].part.grad));
}

double ShardedUpdate::grad_norm() {
  // Of divided parameters, and of those that all holders have whole.
  std::array<double, kShardings.size()> divided{}, whole{};
  for (const Shard& shard : shards_)
    (shard.is_divided ? divided : whole)[static_cast<std::size_t>(shard.part.sharding)] +=
        ops_.sum_of_squares(shard.part.grad);
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
    holders.all_gather(elements(whole.value), shard.values);
    holders.all_gather(elements(whole.stat_row), shard.row_statistics);
    if (!shard.col_statistics.empty())
      holders.all_gather(elements(whole.stat_col), shard.col_statistics);
    whole.round_operand(ops_);
  }
}

}  // namespace openmoe
