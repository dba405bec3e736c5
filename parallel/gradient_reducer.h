// GradientReducer: sums gradients over the ranks that computed other rows. Losses are divided by
// global counts before the backward pass, so every reduction is a plain sum.
//   dense parameters:  over all data ranks
//   expert parameters: over the replicas, the ranks that hold the same experts (the token exchange
//                      already brought them the rows of their ep group)
#pragma once

#include "core/ops.h"
#include "core/param_table.h"
#include "parallel/process_grid.h"

namespace openmoe {

class GradientReducer {
 public:
  // `params` must be allocated for training. All references must outlive this.
  GradientReducer(Ops& ops, ParamTable& params, ProcessGrid& grid);

  // Sets all gradients to zero, before the first micro-batch of a step.
  void zero();
  // Makes the gradients those of the global batch. Collective over the world.
  void reduce();
  // Euclidean norm of the reduced gradient over the parameters of the whole model, each counted
  // once; the same bits on every rank. Collective over the ep group.
  double grad_norm();

 private:
  Ops& ops_;
  ParamTable& params_;
  ProcessGrid& grid_;
};

}  // namespace openmoe
