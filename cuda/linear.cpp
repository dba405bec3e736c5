// Linear layers and grouped products: arguments of gemm.h for each. Weights of linear layers are
// (out, in), those of experts (El, in, out).
#include "cuda/cuda_ops.h"

namespace openmoe {
namespace {

cuda::Operand rows_of(const Tensor& x, bool transposed = false) {
  return {x.data, x.dtype, x.size(x.shape.rank - 1), transposed};
}

void* offset(const Tensor& x, std::int64_t elements) {
  return static_cast<char*>(x.data) + elements * size_of(x.dtype);
}

// Matrix g of a stack.
cuda::Operand matrix_of(const Tensor& stack, std::int64_t g, bool transposed = false) {
  return {offset(stack, g * stack.size(1) * stack.size(2)), stack.dtype, stack.size(2), transposed};
}

// Rows from `begin` on.
cuda::Operand rows_from(const Tensor& x, std::int64_t begin, bool transposed = false) {
  return {offset(x, begin * x.size(1)), x.dtype, x.size(1), transposed};
}

}  // namespace

// y (N, out) = x (N, in) w^T
void CudaOps::do_linear_forward(Tensor y, Tensor x, Tensor w, bool accumulate) {
  gemm_.product(
      {x.size(0), w.size(0), x.size(1), rows_of(x), rows_of(w, true), y.data, y.dtype, w.size(0)},
      accumulate);
}

// dx (N, in) = dy (N, out) w
void CudaOps::do_linear_backward_input(Tensor dx, Tensor dy, Tensor w, bool accumulate) {
  gemm_.product(
      {dx.size(0), dx.size(1), w.size(0), rows_of(dy), rows_of(w), dx.data, dx.dtype, dx.size(1)},
      accumulate);
}

// dw (out, in) += dy^T x
void CudaOps::do_linear_backward_weight(Tensor dw, Tensor dy, Tensor x) {
  gemm_.product({dw.size(0), dw.size(1), x.size(0), rows_of(dy, true), rows_of(x), dw.data,
                 dw.dtype, dw.size(1)},
                true);
}

// y = x w[g]
void CudaOps::do_grouped_matmul_forward(Tensor y, Tensor x, Tensor w, Tensor expert_offsets) {
  const std::int64_t* const offsets = expert_offsets.as<std::int64_t>();
  const std::int64_t in = w.size(1), out = w.size(2);
  jobs_.clear();
  for (std::int64_t g = 0; g < w.size(0); ++g)
    jobs_.push_back({offsets[g + 1] - offsets[g], out, in, rows_from(x, offsets[g]),
                     matrix_of(w, g), offset(y, offsets[g] * out), y.dtype, out});
  gemm_.grouped(jobs_, false);
}

// dx = dy w[g]^T
void CudaOps::do_grouped_matmul_backward_input(Tensor dx, Tensor dy, Tensor w,
                                               Tensor expert_offsets, bool accumulate) {
  const std::int64_t* const offsets = expert_offsets.as<std::int64_t>();
  const std::int64_t in = w.size(1), out = w.size(2);
  jobs_.clear();
  for (std::int64_t g = 0; g < w.size(0); ++g)
    jobs_.push_back({offsets[g + 1] - offsets[g], in, out, rows_from(dy, offsets[g]),
                     matrix_of(w, g, true), offset(dx, offsets[g] * in), dx.dtype, in});
  gemm_.grouped(jobs_, accumulate);
}

// dw[g] += x^T dy
void CudaOps::do_grouped_matmul_backward_weight(Tensor dw, Tensor dy, Tensor x,
                                                Tensor expert_offsets) {
  const std::int64_t* const offsets = expert_offsets.as<std::int64_t>();
  const std::int64_t in = dw.size(1), out = dw.size(2);
  jobs_.clear();
  for (std::int64_t g = 0; g < dw.size(0); ++g)
    jobs_.push_back({in, out, offsets[g + 1] - offsets[g], rows_from(x, offsets[g], true),
                     rows_from(dy, offsets[g]), offset(dw, g * in * out), dw.dtype, out});
  gemm_.grouped(jobs_, true);
}

}  // namespace openmoe
