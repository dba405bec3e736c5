// The bodies behind row_kernels.h, on sixteen lanes (simd.h). Included by the translation units of
// the instruction sets only; uses nothing of the standard library, whose inline functions would
// otherwise be compiled with their flags.
#pragma once

#include "core/cpu/row_kernels.h"
#include "core/cpu/row_kernels_elementwise.h"
#include "core/cpu/row_kernels_reductions.h"

namespace openmoe::cpu {

template <int kBytes>
constexpr RowKernels make_row_kernels() {
  using Elementwise = ElementwiseKernels<kBytes>;
  using Reduction = ReductionKernels<kBytes>;
  return RowKernels{
      .add = Elementwise::add,
      .add_scaled = Elementwise::add_scaled,
      .scale = Elementwise::scale,
      .dot = Reduction::dot,
      .sum_of_squares = Reduction::sum_of_squares,
      .rms_norm = Reduction::rms_norm,
      .rms_norm_backward = Reduction::rms_norm_backward,
      .swiglu = Elementwise::swiglu,
      .gated_swiglu = Elementwise::gated_swiglu,
      .swiglu_backward = Elementwise::swiglu_backward,
      .gated_swiglu_backward = Elementwise::gated_swiglu_backward,
      .rotate = Elementwise::rotate,
      .exp_sum = Reduction::exp_sum,
      .exp_sum_in_place = Reduction::exp_sum_in_place,
      .exp_scaled = Elementwise::exp_scaled,
      .adafactor_sums = Reduction::adafactor_sums,
      .product_square_sum = Reduction::product_square_sum,
      .subtract_scaled_product = Elementwise::subtract_scaled_product,
  };
}

}  // namespace openmoe::cpu
