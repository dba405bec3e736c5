// TensorGroup: the ranks that compute the same rows together, each with its share of every matrix
// (tensor parallelism, Shoeybi et al. 2019), and that share the rows of the residual stream between
// them (sequence parallelism, Korthikanti et al. 2022).
//
// P ranks. A tensor (N, W) that all ranks work on is held in one of three ways:
//   whole      every rank has all N rows
//   by rows    rank r has rows [r N/P, (r+1) N/P); own_rows() is its place in the whole tensor
//   by columns rank r has columns [r W/P, (r+1) W/P) of all rows, as a tensor (N, W/P)
// P divides N and W where the verbs below need it. Collective over the group, on tensors of its
// device. Tensors are added up in the order of ranks, and every rank gets the same bits of any sum.
#pragma once

#include <cstdint>
#include <span>

#include "core/arena.h"
#include "core/ops.h"
#include "core/tensor.h"

namespace openmoe {

class TensorGroup {
 public:
  virtual ~TensorGroup() = default;

  virtual std::int64_t size() const = 0;
  virtual std::int64_t rank() const = 0;

  Tensor own_rows(Tensor whole) const {
    const std::int64_t rows = whole.size(0) / size();
    return whole.rows(rank() * rows, (rank() + 1) * rows);
  }

  // Room for the verbs below: `sent_bytes` for the largest tensor that is packed before it is sent
  // and `received_bytes` for the largest that arrives in pieces.
  virtual void allocate_buffers(Arena& arena, std::int64_t sent_bytes,
                                std::int64_t received_bytes) = 0;

  // by rows -> whole, in place: own_rows(x) is known.
  virtual void gather_rows(Tensor x) = 0;
  // Sum over ranks of whole f32 tensors -> by rows, in place: own_rows(x) ends as the sum, the
  // other rows are undefined. Needs x's size received.
  virtual void sum_rows(Tensor x) = 0;
  // by rows (N/P, W) <-> by columns (N, W/P). Needs the rows' size sent, or received.
  virtual void rows_to_columns(Tensor columns, Tensor rows) = 0;
  virtual void columns_to_rows(Tensor rows, Tensor columns) = 0;
  // by columns (N, W/P) -> whole (N, W); N need not be divisible. Needs whole's size received.
  virtual void gather_columns(Tensor whole, Tensor columns) = 0;
  // Sum over ranks of whole f32 tensors (N, W) -> by columns (N, W/P), f32 or bf16, rounded once.
  // Needs the partial sums' size sent and received.
  virtual void sum_columns(Tensor columns, Tensor partial) = 0;
  // In place, over ranks.
  virtual void sum(Tensor x) = 0;  // f32; needs size() times x received
  virtual void sum(std::span<double> values) = 0;
  virtual void combine(std::span<LogitSums> sums) = 0;  // SharedVocabulary::combine
};

// A group of one rank: everything is whole, and nothing moves.
class LocalTensorGroup : public TensorGroup {
 public:
  std::int64_t size() const override { return 1; }
  std::int64_t rank() const override { return 0; }
  void allocate_buffers(Arena&, std::int64_t, std::int64_t) override {}
  void gather_rows(Tensor) override {}
  void sum_rows(Tensor) override {}
  void rows_to_columns(Tensor, Tensor) override { refuse(); }
  void columns_to_rows(Tensor, Tensor) override { refuse(); }
  void gather_columns(Tensor, Tensor) override { refuse(); }
  void sum_columns(Tensor, Tensor) override { refuse(); }
  void sum(Tensor) override {}
  void sum(std::span<double>) override {}
  void combine(std::span<LogitSums>) override {}

 private:
  static void refuse() { OPENMOE_CHECK(false, "a group of one keeps its tensors whole"); }
};

}  // namespace openmoe
