// Matrix products of the CPU backend: own packed kernels, chosen at run time by CPU features (see
// cpu_features.h). Row-major throughout. Results do not depend on the number of threads: only rows
// and columns of C are split, never K.
#pragma once

#include <cstdint>

namespace openmoe::cpu {

// An operand op(X): element (i, j) is data[i * ld + j], or data[j * ld + i] when transposed.
struct GemmOperand {
  const float* data;
  std::int64_t ld;
  bool transposed = false;
};

// C (m, n) = op(A) (m, k) * op(B) (k, n), added to C when `accumulate`. Uses all OpenMP threads.
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, GemmOperand a, GemmOperand b, float* c,
          std::int64_t ldc, bool accumulate);

// One product of a group; sizes may differ and m, n or k may be 0 (k == 0 without accumulate zeroes
// C).
struct GemmJob {
  std::int64_t m, n, k;
  GemmOperand a, b;
  float* c;
  std::int64_t ldc;
};
// All jobs, scheduled over the threads together so that small groups do not leave threads idle.
void grouped_gemm(const GemmJob* jobs, std::int64_t num_jobs, bool accumulate);

}  // namespace openmoe::cpu
