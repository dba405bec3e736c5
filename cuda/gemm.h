// Matrix products of the CUDA backend, through cuBLASLt and cuBLAS. Everything here is row-major;
// the libraries are column-major, so C = A B is handed over as C^T = B^T A^T, whose transposes cost
// nothing.
//
// f32 operands are multiplied in f32 (never TF32), bf16 operands with f32 accumulation.
#pragma once

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "core/base/dtype.h"

namespace openmoe::cuda {

// A matrix as it lies in memory: rows of `ld` elements. `transposed`: the product reads its
// transpose.
struct Operand {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t ld = 0;
  bool transposed = false;
};

// C (M, N) = A (M, K) B (K, N), or C += A B.
struct GemmJob {
  std::int64_t M = 0;
  std::int64_t N = 0;
  std::int64_t K = 0;
  Operand a, b;
  void* c = nullptr;
  DType c_dtype = DType::f32;
  std::int64_t ldc = 0;
};

class Gemm {
 public:
  explicit Gemm(cudaStream_t stream);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  void product(const GemmJob& job, bool accumulate);
  // Products of one kind (types and transposes) and any sizes, those of size 0 included, in one
  // call where cuBLAS can.
  void grouped(const std::vector<GemmJob>& jobs, bool accumulate);

 private:
  // What a choice of algorithm depends on: sizes, leading dimensions, alignments, types,
  // transposes, accumulate.
  using PlanKey = std::array<std::int64_t, 14>;
  struct Plan {
    cublasLtMatmulDesc_t description = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
    bool found = false;  // false: cuBLASLt has nothing for it, use cuBLAS
  };

  const Plan& plan_for(const GemmJob& job, bool accumulate);
  void single(const GemmJob& job, bool accumulate);
  void clear_or_keep(const GemmJob& job, bool accumulate);
  void upload_pointers(const std::vector<GemmJob>& jobs);

  cudaStream_t stream_;
  cublasHandle_t handle_ = nullptr;
  cublasLtHandle_t lt_handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<PlanKey, Plan> plans_;
  bool has_grouped_ = true;          // until cuBLAS says otherwise
  const void** pointers_ = nullptr;  // device: a, b and c of each job of a grouped call
  std::int64_t max_pointers_ = 0;
};

}  // namespace openmoe::cuda
