// The emulated side of cuda/tensor_core.cuh: mma.m16n8k16 and ldmatrix of a warp, with the operand
// layout of the PTX manual.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace cuda_emulation {

// d += A B, as this lane sees it. All 32 lanes must take part.
void tensor_multiply_add(float* d, const unsigned int* a, unsigned int b0, unsigned int b1,
                         Site site);
// Row addresses of four 8 x 8 matrices of 16-bit elements in shared memory, one per lane, to this
// lane's four registers.
void tensor_load(unsigned int* registers, const void* row, bool transposed, Site site);

}  // namespace cuda_emulation

namespace openmoe::cuda {

inline void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                         const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_emulation::tensor_multiply_add(d, a, b0, b1, {file, line});
}
inline void load_matrices(unsigned (&r)[4], const __nv_bfloat16* row,
                          const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_emulation::tensor_load(r, row, false, {file, line});
}
inline void load_matrices_transposed(unsigned (&r)[4], const __nv_bfloat16* row,
                                     const char* file = __builtin_FILE(),
                                     int line = __builtin_LINE()) {
  cuda_emulation::tensor_load(r, row, true, {file, line});
}

}  // namespace openmoe::cuda
