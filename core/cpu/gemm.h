// Matrix products of the CPU backend: own packed kernels, chosen at run time by CPU features (see
// cpu_features.h). Row-major throughout. Results do not depend on the number of threads: only rows
// and columns of C are split, never K.
//
// Operands are f32, or both bf16: the sums are f32 in either case. With AVX512-BF16 a bf16 product
// uses that instruction, which rounds to nearest even and takes denormals as 0; elsewhere the
// operands are widened and multiplied as f32. The two differ within the rounding of f32 sums.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace openmoe::cpu {

// An operand op(X): element (i, j) is data[i * ld + j], or data[j * ld + i] when transposed.
template <class Element>
struct GemmOperandT {
  const Element* data;
  std::int64_t ld;
  bool transposed = false;
};
using GemmOperand = GemmOperandT<float>;
using GemmOperandBf16 = GemmOperandT<BFloat16>;

// C (m, n) = op(A) (m, k) * op(B) (k, n), added to C when `accumulate`. Uses all OpenMP threads.
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, GemmOperand a, GemmOperand b, float* c,
          std::int64_t ldc, bool accumulate);
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, GemmOperandBf16 a, GemmOperandBf16 b,
          float* c, std::int64_t ldc, bool accumulate);
// The f32 sum, with the old C when `accumulate`, is rounded once.
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, GemmOperandBf16 a, GemmOperandBf16 b,
          BFloat16* c, std::int64_t ldc, bool accumulate);

// One product of a group; sizes may differ and m, n or k may be 0 (k == 0 without accumulate zeroes
// C).
template <class Element, class Output>
struct GemmJobT {
  std::int64_t m, n, k;
  GemmOperandT<Element> a, b;
  Output* c;
  std::int64_t ldc;
};
using GemmJob = GemmJobT<float, float>;

// All jobs, scheduled over the threads together so that small groups do not leave threads idle.
void grouped_gemm(const GemmJob* jobs, std::int64_t num_jobs, bool accumulate);
void grouped_gemm(const GemmJobT<BFloat16, float>* jobs, std::int64_t num_jobs, bool accumulate);
void grouped_gemm(const GemmJobT<BFloat16, BFloat16>* jobs, std::int64_t num_jobs, bool accumulate);

}  // namespace openmoe::cpu
