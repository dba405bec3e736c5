// Matrix products of the CUDA backend, through cuBLASLt and cuBLAS. Everything here is row-major;
// the libraries are column-major, so C = A B is handed over as C^T = B^T A^T, whose transposes cost
// nothing.
//
// f32 operands are multiplied in f32 (never TF32), bf16 operands with f32 accumulation.
//
// Grouped products go to cuBLAS in one call where it documents one: cublasGemmGroupedBatchedEx, for
// three matrices of one type, those of bf16 aligned to 16 bytes unless their sums are odd.
// Gradients of bf16 experts (bf16 operands, f32 result, of which each group has another length of
// the sums) are no case of it, nor of the batched calls, whose products have one size. cublasGemmEx
// documents these types, so each group is a product of its own; they run side by side in a few
// lanes, so that the last wave of thread blocks of one expert is filled by the next.
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

  // Memory that the libraries work in: `data`, of someone else, 256-byte aligned; null: own memory,
  // from the next product on.
  static std::int64_t workspace_bytes();
  void use_workspace(void* data);

  void product(const GemmJob& job, bool accumulate);
  // Independent products of one kind (types and transposes) and any sizes, those of size 0
  // included, in one call where cuBLAS can.
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

  // A stream with a handle and a workspace of its own, as cuBLAS asks of streams that run at once
  // and are to give the same bits each time.
  struct Lane {
    cudaStream_t stream = nullptr;
    cudaEvent_t done = nullptr;
    cublasHandle_t handle = nullptr;
  };
  static constexpr std::size_t kSideLanes = 3;

  const Plan& plan_for(const GemmJob& job, bool accumulate);
  void single(cublasHandle_t handle, const GemmJob& job, bool accumulate);
  static bool may_group(const GemmJob& job);
  bool in_one_call(const std::vector<GemmJob>& jobs, bool accumulate);
  void in_lanes(const std::vector<GemmJob>& jobs, bool accumulate);
  void open_lanes();
  void prepare_workspace();
  void set_workspace(void* data);
  void clear_or_keep(const GemmJob& job, bool accumulate);
  void upload_pointers(const std::vector<GemmJob>& jobs);

  cudaStream_t stream_;
  cublasHandle_t handle_ = nullptr;
  cublasLtHandle_t lt_handle_ = nullptr;
  char* workspace_ = nullptr;  // of stream_, then of each lane
  bool owns_workspace_ = false;
  std::array<Lane, kSideLanes> lanes_;  // beside stream_; opened at their first use
  cudaEvent_t begun_ = nullptr;         // all before a grouped product is enqueued
  std::map<PlanKey, Plan> plans_;
  bool has_grouped_ = true;          // until cuBLAS says otherwise
  const void** pointers_ = nullptr;  // device: a, b and c of each job of a grouped call
  std::int64_t max_pointers_ = 0;
};

}  // namespace openmoe::cuda
