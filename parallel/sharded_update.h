// ShardedUpdate: reduction and optimizer step spread over the ranks that hold the same parameters
// (Rajbhandari et al. 2020, stage 1). Each of them receives the sum of its part of a gradient
// (reduce-scatter) and updates that part. It alone has the optimizer state of the part (row
// statistics and second moments; column statistics of a matrix divided by rows are everywhere), and
// the f32 values where products read a bf16 copy; of those copies all parts are gathered, else of
// the values. Adafactor's row, column and RMS statistics are those of whole matrices, by sums in
// f64. How parameters are divided: ParamShare::divides_update.
#pragma once

#include <cstdint>
#include <vector>

#include "core/ops.h"
#include "core/param_table.h"
#include "core/tensor_group.h"
#include "parallel/process_grid.h"

namespace openmoe {

// Makes the rounded copies of divided values whole, each holder having its part of them. Collective
// over the world.
void gather_operands(ParamTable& params, ProcessGrid& grid);

class ShardedUpdate {
 public:
  // `params` must be allocated for training with whole gradients and with a share that divides
  // updates, of this place in the grid. All references must outlive this.
  ShardedUpdate(Ops& ops, ParamTable& params, ProcessGrid& grid, TensorGroup& tensor);
  ShardedUpdate(const ShardedUpdate&) = delete;
  ShardedUpdate& operator=(const ShardedUpdate&) = delete;

  // Makes this rank's parts of the gradients those of the global batch; other parts are undefined.
  // Collective over the world, as are the other two.
  void reduce();
  // As GradientReducer::grad_norm.
  double grad_norm();
  // One Adafactor step of every parameter. What the model reads is whole on every rank again.
  void update(const OptimizerConfig& config, std::int64_t step);
  // Whether the part of parameter `index` that reduce() made here is finite.
  bool is_finite(std::size_t index) const;

 private:
  // One parameter: its part on this rank, as a parameter of its own, and how large all parts are.
  struct Shard {
    Param part;  // the parameter itself where it is not divided
    bool is_divided = false;
    bool is_shared = false;  // other ranks have parts of the same matrices
    SharedMatrix shared;
    std::vector<std::int64_t> values;  // elements by rank of the holders
  };

  Shard make_shard(const Param& param);
  Ops& ops_;
  ParamTable& params_;
  ProcessGrid& grid_;
  TensorGroup& tensor_;
  std::vector<Shard> shards_;             // by place in the table
  std::vector<Tensor> grads_;             // of the shards
  std::vector<double> squares_of_grads_;  // the same
};

}  // namespace openmoe
