// Linear layers and grouped products: arguments of gemm.h for each. Weights of linear layers are
// (out, in), those of experts (El, in, out).
#include "core/cpu/cpu_ops.h"
#include "core/cpu/gemm.h"

namespace openmoe {
namespace {

// Calls body(Element{}, Output{}) with the storage types of a product's operands and result.
template <class Body>
void with_types(DType operands, DType result, const Body& body) {
  if (operands == DType::f32)
    body(float{}, float{});
  else if (result == DType::f32)
    body(BFloat16{}, float{});
  else
    body(BFloat16{}, BFloat16{});
}

template <class Element>
cpu::GemmOperandT<Element> operand(Tensor x, bool transposed = false) {
  return {x.as<Element>(), x.size(1), transposed};
}

}  // namespace

// y (N, out) = x (N, in) w^T
void CpuOps::do_linear_forward(Tensor y, Tensor x, Tensor w, bool accumulate) {
  with_types(x.dtype, y.dtype, [&](auto element, auto output) {
    using Element = decltype(element);
    cpu::gemm(x.size(0), w.size(0), x.size(1), operand<Element>(x), operand<Element>(w, true),
              y.as<decltype(output)>(), w.size(0), accumulate);
  });
}

// dx (N, in) = dy (N, out) w
void CpuOps::do_linear_backward_input(Tensor dx, Tensor dy, Tensor w, bool accumulate) {
  with_types(dy.dtype, dx.dtype, [&](auto element, auto output) {
    using Element = decltype(element);
    cpu::gemm(dx.size(0), dx.size(1), w.size(0), operand<Element>(dy), operand<Element>(w),
              dx.as<decltype(output)>(), dx.size(1), accumulate);
  });
}

// dw (out, in) += dy^T x
void CpuOps::do_linear_backward_weight(Tensor dw, Tensor dy, Tensor x) {
  with_types(x.dtype, dw.dtype, [&](auto element, auto output) {
    using Element = decltype(element);
    cpu::gemm(dy.size(1), x.size(1), x.size(0), operand<Element>(dy, true), operand<Element>(x),
              dw.as<decltype(output)>(), x.size(1), true);
  });
}

template <class Fill>
void CpuOps::grouped_product(DType operands, DType result, bool accumulate, const Fill& fill) {
  with_types(operands, result, [&](auto element, auto output) {
    auto& jobs = std::get<std::vector<cpu::GemmJobT<decltype(element), decltype(output)>>>(jobs_);
    jobs.clear();
    fill(jobs, element, output);
    cpu::grouped_gemm(jobs.data(), static_cast<std::int64_t>(jobs.size()), accumulate);
  });
}

// y = x w[g]
void CpuOps::do_grouped_matmul_forward(Tensor y, Tensor x, Tensor w, Tensor expert_offsets) {
  const std::int64_t in = w.size(1), out = w.size(2);
  const std::int64_t* const offsets = expert_offsets.as<std::int64_t>();
  grouped_product(x.dtype, y.dtype, false, [&](auto& jobs, auto element, auto output) {
    using Element = decltype(element);
    for (std::int64_t g = 0; g < w.size(0); ++g)
      jobs.push_back({offsets[g + 1] - offsets[g],
                      out,
                      in,
                      {x.as<Element>() + offsets[g] * in, in},
                      {w.as<Element>() + g * in * out, out},
                      y.as<decltype(output)>() + offsets[g] * out,
                      out});
  });
}

// dx = dy w[g]^T
void CpuOps::do_grouped_matmul_backward_input(Tensor dx, Tensor dy, Tensor w, Tensor expert_offsets,
                                              bool accumulate) {
  const std::int64_t in = w.size(1), out = w.size(2);
  const std::int64_t* const offsets = expert_offsets.as<std::int64_t>();
  grouped_product(dy.dtype, dx.dtype, accumulate, [&](auto& jobs, auto element, auto output) {
    using Element = decltype(element);
    for (std::int64_t g = 0; g < w.size(0); ++g)
      jobs.push_back({offsets[g + 1] - offsets[g],
                      in,
                      out,
                      {dy.as<Element>() + offsets[g] * out, out},
                      {w.as<Element>() + g * in * out, out, true},
                      dx.as<decltype(output)>() + offsets[g] * in,
                      in});
  });
}

// dw[g] += x^T dy
void CpuOps::do_grouped_matmul_backward_weight(Tensor dw, Tensor dy, Tensor x,
                                               Tensor expert_offsets) {
  const std::int64_t in = dw.size(1), out = dw.size(2);
  const std::int64_t* const offsets = expert_offsets.as<std::int64_t>();
  grouped_product(x.dtype, dw.dtype, true, [&](auto& jobs, auto element, auto output) {
    using Element = decltype(element);
    for (std::int64_t g = 0; g < dw.size(0); ++g)
      jobs.push_back({in,
                      out,
                      offsets[g + 1] - offsets[g],
                      {x.as<Element>() + offsets[g] * in, in, true},
                      {dy.as<Element>() + offsets[g] * out, out},
                      dw.as<decltype(output)>() + g * in * out,
                      out});
  });
}

}  // namespace openmoe
