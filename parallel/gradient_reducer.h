// GradientReducer: sums gradients over the ranks that computed other rows. Losses are divided by
// global counts before the backward pass, so every reduction is a plain sum.
//   replicated parameters: over all ranks: each of a tensor group computed with its own rows
//   tensor slices:         over all data ranks
//   expert parameters:     over the replicas, the ranks that hold the same experts (the token
//                          exchange already brought them the rows of their ep group)
#pragma once

#include <array>

#include "core/ops.h"
#include "core/param_table.h"
#include "parallel/process_grid.h"

namespace openmoe {

class GradientReducer {
 public:
  // `params` must be allocated for training. All references must outlive this.
  GradientReducer(Ops& ops, ParamTable& params, ProcessGrid& grid);

  // Makes the gradients those of the global batch: all of them (GradientMemory::whole), or one.
  // Collective over the world; parameters in the same order on every rank.
  void reduce();
  void reduce(Param& param);
  // Euclidean norm of the reduced gradient over the parameters of the whole model, each counted
  // once; the same bits on every rank. Of all gradients, or of those whose squares were add()ed.
  // Collective over the ep and tp groups.
  double grad_norm();
  double add_squares(const Param& param);  // the squares of this rank's part
  double norm_of_added();

 private:
  // Over the ranks that computed parts of these gradients.
  void sum(const Tensor& grads, Sharding sharding);

  Ops& ops_;
  ParamTable& params_;
  ProcessGrid& grid_;
  std::array<double, kNumShardings> squares_{};  // of add_squares
};

}  // namespace openmoe
