// The functions of cuBLAS and cuBLASLt that the backend calls, opened at the first call.
#include <cublasLt.h>
#include <cublas_v2.h>

#include "cuda/libraries/loaded_library.h"

namespace {

using openmoe::cuda::LoadedLibrary;

#define OPENMOE_TEXT_OF(number) #number
#define OPENMOE_TEXT(number) OPENMOE_TEXT_OF(number)
constexpr const char* kWayOut = "install the libraries of CUDA " OPENMOE_TEXT(
    CUBLAS_VER_MAJOR) ", name their folder in LD_LIBRARY_PATH, or use --device cpu";

LoadedLibrary& cublas_lt() {
  static LoadedLibrary library("libcublasLt.so." OPENMOE_TEXT(CUBLAS_VER_MAJOR), kWayOut);
  return library;
}

LoadedLibrary& cublas() {
  static LoadedLibrary library("libcublas.so." OPENMOE_TEXT(CUBLAS_VER_MAJOR), kWayOut);
  return library;
}

}  // namespace

OPENMOE_FORWARD(cublas_lt, cublasStatus_t, cublasLtCreate, (cublasLtHandle_t * lightHandle),
                (lightHandle))
OPENMOE_FORWARD(cublas_lt, cublasStatus_t, cublasLtDestroy, (cublasLtHandle_t lightHandle),
                (lightHandle))
OPENMOE_FORWARD(cublas_lt, size_t, cublasLtGetVersion, (), ())
OPENMOE_FORWARD(cublas_lt, cublasStatus_t, cublasLtMatmul,
                (cublasLtHandle_t lightHandle, cublasLtMatmulDesc_t computeDesc, const void* alpha,
                 const void* A, cublasLtMatrixLayout_t Adesc, const void* B,
                 cublasLtMatrixLayout_t Bdesc, const void* beta, const void* C,
                 cublasLtMatrixLayout_t Cdesc, void* D, cublasLtMatrixLayout_t Ddesc,
                 const cublasLtMatmulAlgo_t* algo, void* workspace, size_t workspaceSizeInBytes,
                 cudaStream_t stream),
                (lightHandle, computeDesc, alpha, A, Adesc, B, Bdesc, beta, C, Cdesc, D, Ddesc,
                 algo, workspace, workspaceSizeInBytes, stream))
OPENMOE_FORWARD(cublas_lt, cublasStatus_t, cublasLtMatmulAlgoGetHeuristic,
                (cublasLtHandle_t lightHandle, cublasLtMatmulDesc_t operationDesc,
                 cublasLtMatrixLayout_t Adesc, cublasLtMatrixLayout_t Bdesc,
                 cublasLtMatrixLayout_t Cdesc, cublasLtMatrixLayout_t Ddesc,
                 cublasLtMatmulPreference_t preference, int requestedAlgoCount,
                 cublasLtMatmulHeuristicResult_t heuristicResultsArray[], int* returnAlgoCount),
                (lightHandle, operationDesc, Adesc, Bdesc, Cdesc, Ddesc, preference,
                 requestedAlgoCount, heuristicResultsArray, returnAlgoCount))
OPENMOE_FORWARD(cublas_lt, cublasStatus_t, cublasLtMatmulDescCreate,
                (cublasLtMatmulDesc_t * matmulDesc, cublasComputeType_t computeType,
                 cudaDataType_t scaleType),
                (matmulDesc, computeType, scaleType))
OPENMOE_FORWARD(cublas_lt, cublasStatus_t, cublasLtMatmulDescDestroy,
                (cublasLtMatmulDesc_t matmulDesc), (matmulDesc))
OPENMOE_FORWARD(cublas_lt, cublasStatus_t, cublasLtMatmulDescSetAttribute,
                (cublasLtMatmulDesc_t matmulDesc, cublasLtMatmulDescAttributes_t attr,
                 const void* buf, size_t sizeInBytes),
                (matmulDesc, attr, buf, sizeInBytes))
OPENMOE_FORWARD(cublas_lt, cublasStatus_t, cublasLtMatmulPreferenceCreate,
                (cublasLtMatmulPreference_t * pref), (pref))
OPENMOE_FORWARD(cublas_lt, cublasStatus_t, cublasLtMatmulPreferenceDestroy,
                (cublasLtMatmulPreference_t pref), (pref))
OPENMOE_FORWARD(cublas_lt, cublasStatus_t, cublasLtMatmulPreferenceSetAttribute,
                (cublasLtMatmulPreference_t pref, cublasLtMatmulPreferenceAttributes_t attr,
                 const void* buf, size_t sizeInBytes),
                (pref, attr, buf, sizeInBytes))
OPENMOE_FORWARD(cublas_lt, cublasStatus_t, cublasLtMatrixLayoutCreate,
                (cublasLtMatrixLayout_t * matLayout, cudaDataType type, uint64_t rows,
                 uint64_t cols, int64_t ld),
                (matLayout, type, rows, cols, ld))
OPENMOE_FORWARD(cublas_lt, cublasStatus_t, cublasLtMatrixLayoutDestroy,
                (cublasLtMatrixLayout_t matLayout), (matLayout))

OPENMOE_FORWARD(cublas, cublasStatus_t, cublasCreate_v2, (cublasHandle_t * handle), (handle))
OPENMOE_FORWARD(cublas, cublasStatus_t, cublasDestroy_v2, (cublasHandle_t handle), (handle))
OPENMOE_FORWARD(cublas, cublasStatus_t, cublasGemmEx,
                (cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m,
                 int n, int k, const void* alpha, const void* A, cudaDataType Atype, int lda,
                 const void* B, cudaDataType Btype, int ldb, const void* beta, void* C,
                 cudaDataType Ctype, int ldc, cublasComputeType_t computeType,
                 cublasGemmAlgo_t algo),
                (handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C,
                 Ctype, ldc, computeType, algo))
OPENMOE_FORWARD(cublas, cublasStatus_t, cublasGemmGroupedBatchedEx,
                (cublasHandle_t handle, const cublasOperation_t transa_array[],
                 const cublasOperation_t transb_array[], const int m_array[], const int n_array[],
                 const int k_array[], const void* alpha_array, const void* const Aarray[],
                 cudaDataType_t Atype, const int lda_array[], const void* const Barray[],
                 cudaDataType_t Btype, const int ldb_array[], const void* beta_array,
                 void* const Carray[], cudaDataType_t Ctype, const int ldc_array[], int group_count,
                 const int group_size[], cublasComputeType_t computeType),
                (handle, transa_array, transb_array, m_array, n_array, k_array, alpha_array, Aarray,
                 Atype, lda_array, Barray, Btype, ldb_array, beta_array, Carray, Ctype, ldc_array,
                 group_count, group_size, computeType))
OPENMOE_FORWARD(cublas, const char*, cublasGetStatusName, (cublasStatus_t status), (status))
OPENMOE_FORWARD(cublas, const char*, cublasGetStatusString, (cublasStatus_t status), (status))
OPENMOE_FORWARD(cublas, cublasStatus_t, cublasSetMathMode,
                (cublasHandle_t handle, cublasMath_t mode), (handle, mode))
OPENMOE_FORWARD(cublas, cublasStatus_t, cublasSetStream_v2,
                (cublasHandle_t handle, cudaStream_t streamId), (handle, streamId))
OPENMOE_FORWARD(cublas, cublasStatus_t, cublasSetWorkspace_v2,
                (cublasHandle_t handle, void* workspace, size_t workspaceSizeInBytes),
                (handle, workspace, workspaceSizeInBytes))
