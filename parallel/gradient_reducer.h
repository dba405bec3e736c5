// GradientReducer: sums gradients over the ranks that computed other rows. Losses are divided by
// global counts before the backward pass, so every reduction is a plain sum.
//   replicated parameters: over all ranks: each of a tensor group computed with its own rows
//   tensor slices:         over all data ranks
//   expert parameters:     over the replicas, the ranks that hold the same experts (the token
//                          exchange already brought them the rows of their ep group)
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/ops.h"
#include "core/param_table.h"
#include "parallel/process_grid.h"

namespace openmoe {

// From the squares of this rank's part of each kind of parameter, the norm over the whole model,
// each parameter counted once; the same bits on every rank. Collective over the ep and tp groups.
double total_norm(const std::array<double, kShardings.size()>& squares, ProcessGrid& grid);

class GradientReducer {
 public:
  // `params` must be allocated for training. All references must outlive this. bucket_bytes > 0:
  // complete() may be used.
  GradientReducer(Ops& ops, ParamTable& params, ProcessGrid& grid, std::int64_t bucket_bytes = 0);

  // Reduction while the backward pass goes on. The gradients, whole ones, lie in buckets in the
  // order of the forward pass; a bucket's sum starts when all of it is complete(), in the order of
  // the backward pass on every rank. complete() takes a parameter or slices of it
  // (Model::observe_gradients), each once; finish() waits for all, and is then the same as
  // reduce().
  bool has_buckets() const { return !buckets_.empty(); }
  void complete(const Param& param);
  void finish();

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
  struct Bucket {
    Sharding sharding = Sharding::replicated;
    float *begin = nullptr, *end = nullptr;
    std::int64_t elements = 0;   // of its parameters, without the gaps between them
    std::int64_t remaining = 0;  // not yet complete
  };

  void sum(const Tensor& grads, Sharding sharding);
  void make_buckets(std::int64_t bytes);

  Ops& ops_;
  ParamTable& params_;
  ProcessGrid& grid_;
  std::vector<Bucket> buckets_;
  std::vector<Tensor> grads_;                        // by place in the table
  std::vector<double> squares_of_grads_;             // the same
  std::array<double, kShardings.size()> squares_{};  // of add_squares
};

}  // namespace openmoe
