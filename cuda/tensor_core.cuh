// The tensor-core instructions in use (sm_80 and later), with the layout of their operands over the
// lanes of a warp. With g = lane / 4 and t = lane % 4, a register holds two bf16 neighbours, the
// lower index in its lower half:
//   A (16, 16):  a[0] = A[g][2t..]  a[1] = A[g+8][2t..]  a[2] = A[g][2t+8..]  a[3] = A[g+8][2t+8..]
//   B (16, 8):   b[0] = B[2t..][g]  b[1] = B[2t+8..][g]
//   D (16, 8):   d[0], d[1] = D[g][2t, 2t+1]   d[2], d[3] = D[g+8][2t, 2t+1]
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#ifdef OPENMOE_CUDA_EMULATION
#include "test/cuda_emulation/tensor_core.h"
#else

namespace openmoe::cuda {

// d += A B, bf16 operands, f32 accumulation. All lanes of the warp.
__device__ inline void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit elements in shared memory: lane 8 m + r gives the address of row r
// of matrix m, aligned to 16 bytes. r[m] = elements 2t, 2t+1 of row g of matrix m.
__device__ inline void load_matrices(unsigned (&r)[4], const __nv_bfloat16* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// The same with every matrix transposed: r[m] = elements g of rows 2t, 2t+1.
__device__ inline void load_matrices_transposed(unsigned (&r)[4], const __nv_bfloat16* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

}  // namespace openmoe::cuda

#endif
