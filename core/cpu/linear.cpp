// Linear layers and grouped products: arguments of gemm.h for each. Weights of linear layers are
// (out, in), those of experts (El, in, out).
#include "core/cpu/cpu_ops.h"
#include "core/cpu/gemm.h"

namespace openmoe {

// y (N, out) = x (N, in) w^T
void CpuOps::do_linear_forward(Tensor y, Tensor x, Tensor w, bool accumulate) {
  const std::int64_t N = x.size(0), in = x.size(1), out = w.size(0);
  cpu::gemm(N, out, in, {x.as<float>(), in}, {w.as<float>(), in, true}, y.as<float>(), out,
            accumulate);
}

// dx (N, in) = dy (N, out) w
void CpuOps::do_linear_backward_input(Tensor dx, Tensor dy, Tensor w, bool accumulate) {
  const std::int64_t N = dx.size(0), in = dx.size(1), out = w.size(0);
  cpu::gemm(N, in, out, {dy.as<float>(), out}, {w.as<float>(), in}, dx.as<float>(), in, accumulate);
}

// dw (out, in) += dy^T x
void CpuOps::do_linear_backward_weight(Tensor dw, Tensor dy, Tensor x) {
  const std::int64_t N = x.size(0), in = x.size(1), out = dy.size(1);
  cpu::gemm(out, in, N, {dy.as<float>(), out, true}, {x.as<float>(), in}, dw.as<float>(), in, true);
}

// y = x w[g]
void CpuOps::do_grouped_matmul_forward(Tensor y, Tensor x, Tensor w, Tensor expert_offsets) {
  const std::int64_t in = w.size(1), out = w.size(2);
  const std::int64_t* const offsets = expert_offsets.as<std::int64_t>();
  jobs_.clear();
  for (std::int64_t g = 0; g < w.size(0); ++g)
    jobs_.push_back({offsets[g + 1] - offsets[g],
                     out,
                     in,
                     {x.as<float>() + offsets[g] * in, in},
                     {w.as<float>() + g * in * out, out},
                     y.as<float>() + offsets[g] * out,
                     out});
  cpu::grouped_gemm(jobs_.data(), static_cast<std::int64_t>(jobs_.size()), false);
}

// dx = dy w[g]^T
void CpuOps::do_grouped_matmul_backward_input(Tensor dx, Tensor dy, Tensor w, Tensor expert_offsets,
                                              bool accumulate) {
  const std::int64_t in = w.size(1), out = w.size(2);
  const std::int64_t* const offsets = expert_offsets.as<std::int64_t>();
  jobs_.clear();
  for (std::int64_t g = 0; g < w.size(0); ++g)
    jobs_.push_back({offsets[g + 1] - offsets[g],
                     in,
                     out,
                     {dy.as<float>() + offsets[g] * out, out},
                     {w.as<float>() + g * in * out, out, true},
                     dx.as<float>() + offsets[g] * in,
                     in});
  cpu::grouped_gemm(jobs_.data(), static_cast<std::int64_t>(jobs_.size()), accumulate);
}

// dw[g] += x^T dy
void CpuOps::do_grouped_matmul_backward_weight(Tensor dw, Tensor dy, Tensor x,
                                               Tensor expert_offsets) {
  const std::int64_t in = dw.size(1), out = dw.size(2);
  const std::int64_t* const offsets = expert_offsets.as<std::int64_t>();
  jobs_.clear();
  for (std::int64_t g = 0; g < dw.size(0); ++g)
    jobs_.push_back({in,
                     out,
                     offsets[g + 1] - offsets[g],
                     {x.as<float>() + offsets[g] * in, in, true},
                     {dy.as<float>() + offsets[g] * out, out},
                     dw.as<float>() + g * in * out,
                     out});
  cpu::grouped_gemm(jobs_.data(), static_cast<std::int64_t>(jobs_.size()), true);
}

}  // namespace openmoe
