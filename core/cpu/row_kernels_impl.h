// The bodies behind row_kernels.h, on sixteen lanes (simd.h). Included by the translation units of
// the instruction sets only; uses nothing of the standard library, whose inline functions would
// otherwise be compiled with their flags.
#pragma once

#include "core/cpu/row_kernels.h"
#include "core/cpu/row_kernels_elementwise.h"
#include "core/cpu/row_kernels_reductions.h"

namespace openmoe::cpu {

template <int kBytes, class S>
constexpr StorageKernels<S> make_storage_kernels() {
  using Elementwise = ElementwiseKernels<kBytes>;
  using Reduction = ReductionKernels<kBytes>;
  return StorageKernels<S>{
      .add = Elementwise::template add<S>,
      .add_scaled = Elementwise::template add_scaled<S>,
      .scale = Elementwise::template scale<S>,
      .dot = Reduction::template dot<S>,
      .rms_norm = Reduction::template rms_norm<S>,
      .swiglu = Elementwise::template swiglu<S>,
      .gated_swiglu = Elementwise::template gated_swiglu<S>,
      .swiglu_backward = Elementwise::template swiglu_backward<S>,
      .gated_swiglu_backward = Elementwise::template gated_swiglu_backward<S>,
      .rotate = Elementwise::template rotate<S>,
  };
}

template <int kBytes>
constexpr RowKernels make_row_kernels() {
  using Elementwise = ElementwiseKernels<kBytes>;
  using Reduction = ReductionKernels<kBytes>;
  RowKernels kernels{};
  static_cast<StorageKernels<float>&>(kernels) = make_storage_kernels<kBytes, float>();
  kernels.bf16 = make_storage_kernels<kBytes, BFloat16>();
  kernels.sum_of_squares = Reduction::sum_of_squares;
  kernels.rms_norm_backward = Reduction::rms_norm_backward;
  kernels.exp_sum = Reduction::exp_sum;
  kernels.exp_sum_in_place = Reduction::exp_sum_in_place;
  kernels.exp_scaled = Elementwise::exp_scaled;
  kernels.adafactor_sums = Reduction::adafactor_sums;
  kernels.product_square_sum = Reduction::product_square_sum;
  kernels.subtract_scaled_product = Elementwise::subtract_scaled_product;
  return kernels;
}

}  // namespace openmoe::cpu
