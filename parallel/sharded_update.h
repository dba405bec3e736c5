// ShardedUpdate: reduction and optimizer step with the work of the update spread over the ranks
// that hold the same parameters (Rajbhandari et al. 2020, stage 1, for the computation). Each of
// them receives the sum of its part of a gradient (reduce-scatter), updates that part, and all
// parts are gathered. Adafactor's row, column and RMS statistics are those of whole matrices, by
// sums in f64.
//
// A stack of experts is divided by experts, a matrix by rows, and what has no factored statistics
// by elements. A matrix that is shared by columns over a tensor group is updated whole by every
// rank.
#pragma once

#include <cstdint>
#include <vector>

#include "core/ops.h"
#include "core/param_table.h"
#include "core/tensor_group.h"
#include "parallel/process_grid.h"

namespace openmoe {

class ShardedUpdate {
 public:
  // `params` must be allocated for training with whole gradients, in host memory. All references
  // must outlive this.
  ShardedUpdate(Ops& ops, ParamTable& params, ProcessGrid& grid, TensorGroup& tensor);
  ShardedUpdate(const ShardedUpdate&) = delete;
  ShardedUpdate& operator=(const ShardedUpdate&) = delete;

  // Makes this rank's parts of the gradients those of the global batch; other parts are undefined.
  // Collective over the world, as are the other two.
  void reduce();
  // As GradientReducer::grad_norm.
  double grad_norm();
  // One Adafactor step of every parameter. Values and statistics are whole on every rank again.
  void update(const OptimizerConfig& config, std::int64_t step);
  // Whether the part of parameter `index` that reduce() made here is finite.
  bool is_finite(std::size_t index) const;

 private:
  // One parameter: its part on this rank, which shares its memory, and how large all parts are.
  struct Shard {
    Param part;  // the parameter itself where it is not divided
    bool is_divided = false;
    bool is_shared = false;  // other ranks have parts of the same matrices
    SharedMatrix shared;
    std::vector<std::int64_t> values, row_statistics;  // elements by rank of the holders
    std::vector<std::int64_t> col_statistics;          // empty: they are whole everywhere
  };

  Shard make_shard(const Param& param);
  Ops& ops_;
  ParamTable& params_;
  ProcessGrid& grid_;
  TensorGroup& tensor_;
  std::vector<Shard> shards_;  // by place in the table
};

}  // namespace openmoe
