#include "cublas_v2.h"

#include <cstring>
#include <mutex>
#include <vector>

#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/gemm.h"
#include "test/cuda_emulation/runtime/streams.h"
#include "test/cuda_emulation/runtime/violation.h"

struct cublasContext {
  int device = 0;
  cudaStream_t stream = nullptr;
  cublasPointerMode_t pointer_mode = CUBLAS_POINTER_MODE_HOST;
};

namespace cuda_emulation {
namespace {

// Alpha or beta, on the host or on the device as the handle says, of the type that the compute type
// implies.
double scalar(const void* p, const cublasContext& handle, cublasComputeType_t compute,
              const char* name) {
  const bool wide = compute == CUBLAS_COMPUTE_64F || compute == CUBLAS_COMPUTE_64F_PEDANTIC;
  const bool on_device = device_memory::contains(p);
  if (handle.pointer_mode == CUBLAS_POINTER_MODE_HOST && on_device)
    violation(text(name, " is a device pointer, but the pointer mode is host"));
  if (handle.pointer_mode == CUBLAS_POINTER_MODE_DEVICE) {
    device_memory::read_range(p, wide ? 8 : 4, handle.device, name);
    p = device_memory::host_view(p);
  }
  return wide ? *static_cast<const double*>(p) : static_cast<double>(*static_cast<const float*>(p));
}

struct Shape {
  cublasOperation_t transa, transb;
  int m, n, k, lda, ldb, ldc;
};

bool is_operation(cublasOperation_t op) {
  return op == CUBLAS_OP_N || op == CUBLAS_OP_T || op == CUBLAS_OP_C;
}

Matrix matrix(void* data, cudaDataType_t type, bool transposed, std::int64_t rows,
              std::int64_t cols, std::int64_t ld) {
  Matrix m;
  m.data = data;
  m.type = type;
  m.rows = transposed ? cols : rows;
  m.cols = transposed ? rows : cols;
  m.ld = ld;
  m.transposed = transposed;
  return m;
}

struct Types {
  cudaDataType_t a, b, c;
  cublasComputeType_t compute;
};

Product make_product(const char* call, const Shape& s, const Types& types, const void* a,
                     const void* b, void* c) {
  Product p;
  p.call = call;
  p.compute = types.compute;
  p.a = matrix(const_cast<void*>(a), types.a, s.transa != CUBLAS_OP_N, s.m, s.k, s.lda);
  p.b = matrix(const_cast<void*>(b), types.b, s.transb != CUBLAS_OP_N, s.k, s.n, s.ldb);
  p.c = p.d = matrix(c, types.c, false, s.m, s.n, s.ldc);
  return p;
}

cublasStatus_t check_call(cublasHandle_t handle, const char* call, const Shape& s) {
  if (handle == nullptr) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, text(call, ": no handle"));
  if (!is_operation(s.transa) || !is_operation(s.transb))
    return refuse(CUBLAS_STATUS_INVALID_VALUE, text(call, ": unknown operation"));
  if (s.m < 0 || s.n < 0 || s.k < 0)
    return refuse(CUBLAS_STATUS_INVALID_VALUE, text(call, ": m ", s.m, ", n ", s.n, ", k ", s.k));
  if (handle->device != current_device())
    violation(text(call, ": a handle of device ", handle->device, " while device ",
                   current_device(), " is current"));
  return CUBLAS_STATUS_SUCCESS;
}

struct Batch {
  long long a = 0, b = 0, c = 0;  // strides in elements
  int count = 1;
};

cublasStatus_t strided(cublasHandle_t handle, const char* call, const Shape& s, const Types& types,
                       const void* alpha, const void* a, const void* b, const void* beta, void* c,
                       const Batch& batch) {
  const std::lock_guard lock(api_mutex());
  if (const cublasStatus_t status = check_call(handle, call, s); status != CUBLAS_STATUS_SUCCESS)
    return status;
  if (batch.count < 0)
    return refuse(CUBLAS_STATUS_INVALID_VALUE, text(call, ": batch of ", batch.count));
  Product p = make_product(call, s, types, a, b, c);
  if (const cublasStatus_t status = check_product(p); status != CUBLAS_STATUS_SUCCESS)
    return status;
  if (batch.count > 1 && batch.c < static_cast<long long>(s.ldc) * s.n &&
      batch.c > -static_cast<long long>(s.ldc) * s.n && s.m > 0 && s.n > 0)
    violation(text(call, ": stride ", batch.c, " of C lets results of a batch overlap"));
  CUstream_st& stream = stream_of(handle->stream, call);
  Operation operation(stream, call);
  p.alpha = scalar(alpha, *handle, types.compute, "alpha");
  p.beta = scalar(beta, *handle, types.compute, "beta");
  for (int i = 0; i < batch.count; ++i) {
    const auto at = [i](const void* base, long long stride, cudaDataType_t type) {
      return static_cast<char*>(const_cast<void*>(base)) +
             i * stride * static_cast<long long>(element_bytes(type));
    };
    p.a.data = at(a, batch.a, types.a);
    p.b.data = at(b, batch.b, types.b);
    p.c.data = p.d.data = at(c, batch.c, types.c);
    if (const cublasStatus_t status = check_product(p); status != CUBLAS_STATUS_SUCCESS)
      return status;
    run_product(p, stream.device);
  }
  return CUBLAS_STATUS_SUCCESS;
}

// The pointers of a batch, which lie on the device.
std::vector<void*> read_pointers(const void* array, int count, int device, const char* what) {
  std::vector<void*> pointers(static_cast<std::size_t>(count));
  if (count == 0) return pointers;
  device_memory::read_range(array, pointers.size() * sizeof(void*), device, what);
  std::memcpy(pointers.data(), device_memory::host_view(array), pointers.size() * sizeof(void*));
  return pointers;
}

// Pointers to bf16 must suit the wide accesses that the length of the sums allows; the device
// faults where they do not.
void check_grouped_pointers(const Product& p, int k) {
  if (p.a.type != CUDA_R_16BF) return;
  const std::uintptr_t wanted = k * 2 % 16 == 0 ? 16 : k * 2 % 4 == 0 ? 4 : 2;
  for (const Matrix* matrix : {&p.a, &p.b, &p.c})
    if (reinterpret_cast<std::uintptr_t>(matrix->data) % wanted != 0)
      violation(text(p.call, ": a matrix of bf16 with sums over ", k, " is not aligned to ", wanted,
                     " bytes"));
}

}  // namespace
}  // namespace cuda_emulation

using namespace cuda_emulation;

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  const std::lock_guard lock(api_mutex());
  *handle = new cublasContext;
  (*handle)->device = current_device();
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  const std::lock_guard lock(api_mutex());
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  stream_of(handle->stream, "cublasDestroy");  // which may wait for it
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetVersion(cublasHandle_t, int* version) {
  *version = CUBLAS_VERSION;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  const std::lock_guard lock(api_mutex());
  stream_of(stream, "cublasSetStream");
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetStream(cublasHandle_t handle, cudaStream_t* stream) {
  *stream = handle->stream;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void* workspace, std::size_t bytes) {
  const std::lock_guard lock(api_mutex());
  if (reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0)
    return refuse(CUBLAS_STATUS_INVALID_VALUE, "cublasSetWorkspace: not aligned to 256 bytes");
  device_memory::check_range(workspace, bytes, handle->device, "cublasSetWorkspace");
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetPointerMode(cublasHandle_t handle, cublasPointerMode_t mode) {
  handle->pointer_mode = mode;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t) {
  return handle == nullptr ? CUBLAS_STATUS_NOT_INITIALIZED : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t transa,
                           cublasOperation_t transb, int m, int n, int k, const float* alpha,
                           const float* A, int lda, const float* B, int ldb, const float* beta,
                           float* C, int ldc) {
  return strided(handle, "cublasSgemm", {transa, transb, m, n, k, lda, ldb, ldc},
                 {CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F}, alpha, A, B, beta, C,
                 {});
}
cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t transa,
                                         cublasOperation_t transb, int m, int n, int k,
                                         const float* alpha, const float* A, int lda,
                                         long long int strideA, const float* B, int ldb,
                                         long long int strideB, const float* beta, float* C,
                                         int ldc, long long int strideC, int batchCount) {
  return strided(handle, "cublasSgemmStridedBatched", {transa, transb, m, n, k, lda, ldb, ldc},
                 {CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F}, alpha, A, B, beta, C,
                 {strideA, strideB, strideC, batchCount});
}
cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa,
                            cublasOperation_t transb, int m, int n, int k, const void* alpha,
                            const void* A, cudaDataType Atype, int lda, const void* B,
                            cudaDataType Btype, int ldb, const void* beta, void* C,
                            cudaDataType Ctype, int ldc, cublasComputeType_t computeType,
                            cublasGemmAlgo_t) {
  return strided(handle, "cublasGemmEx", {transa, transb, m, n, k, lda, ldb, ldc},
                 {Atype, Btype, Ctype, computeType}, alpha, A, B, beta, C, {});
}
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t transa,
                                          cublasOperation_t transb, int m, int n, int k,
                                          const void* alpha, const void* A, cudaDataType Atype,
                                          int lda, long long int strideA, const void* B,
                                          cudaDataType Btype, int ldb, long long int strideB,
                                          const void* beta, void* C, cudaDataType Ctype, int ldc,
                                          long long int strideC, int batchCount,
                                          cublasComputeType_t computeType, cublasGemmAlgo_t) {
  return strided(handle, "cublasGemmStridedBatchedEx", {transa, transb, m, n, k, lda, ldb, ldc},
                 {Atype, Btype, Ctype, computeType}, alpha, A, B, beta, C,
                 {strideA, strideB, strideC, batchCount});
}

cublasStatus_t cublasGemmBatchedEx(cublasHandle_t handle, cublasOperation_t transa,
                                   cublasOperation_t transb, int m, int n, int k, const void* alpha,
                                   const void* const Aarray[], cudaDataType Atype, int lda,
                                   const void* const Barray[], cudaDataType Btype, int ldb,
                                   const void* beta, void* const Carray[], cudaDataType Ctype,
                                   int ldc, int batchCount, cublasComputeType_t computeType,
                                   cublasGemmAlgo_t) {
  const std::lock_guard lock(api_mutex());
  const char* call = "cublasGemmBatchedEx";
  const Shape s{transa, transb, m, n, k, lda, ldb, ldc};
  if (const cublasStatus_t status = check_call(handle, call, s); status != CUBLAS_STATUS_SUCCESS)
    return status;
  CUstream_st& stream = stream_of(handle->stream, call);
  Operation operation(stream, call);
  const auto a = read_pointers(Aarray, batchCount, stream.device, "array of A");
  const auto b = read_pointers(Barray, batchCount, stream.device, "array of B");
  const auto c = read_pointers(Carray, batchCount, stream.device, "array of C");
  for (std::size_t i = 0; i < a.size(); ++i) {
    Product p = make_product(call, s, {Atype, Btype, Ctype, computeType}, a[i], b[i], c[i]);
    p.alpha = scalar(alpha, *handle, computeType, "alpha");
    p.beta = scalar(beta, *handle, computeType, "beta");
    if (const cublasStatus_t status = check_product(p); status != CUBLAS_STATUS_SUCCESS)
      return status;
    run_product(p, stream.device);
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmGroupedBatchedEx(
    cublasHandle_t handle, const cublasOperation_t transa_array[],
    const cublasOperation_t transb_array[], const int m_array[], const int n_array[],
    const int k_array[], const void* alpha_array, const void* const Aarray[], cudaDataType_t Atype,
    const int lda_array[], const void* const Barray[], cudaDataType_t Btype, const int ldb_array[],
    const void* beta_array, void* const Carray[], cudaDataType_t Ctype, const int ldc_array[],
    int group_count, const int group_size[], cublasComputeType_t computeType) {
  const std::lock_guard lock(api_mutex());
  const char* call = "cublasGemmGroupedBatchedEx";
  if (handle == nullptr) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, text(call, ": no handle"));
  if (handle->pointer_mode != CUBLAS_POINTER_MODE_HOST)
    return refuse(CUBLAS_STATUS_NOT_SUPPORTED, text(call, ": pointer mode device"));
  // One type for all three matrices, as documented.
  if (Atype != Btype || Atype != Ctype)
    return refuse(CUBLAS_STATUS_NOT_SUPPORTED, text(call, ": A ", type_name(Atype), ", B ",
                                                    type_name(Btype), ", C ", type_name(Ctype)));
  int total = 0;
  for (int g = 0; g < group_count; ++g) {
    if (group_size[g] < 0)
      return refuse(CUBLAS_STATUS_INVALID_VALUE, text(call, ": group of ", group_size[g]));
    total += group_size[g];
  }
  CUstream_st& stream = stream_of(handle->stream, call);
  Operation operation(stream, call);
  const auto a = read_pointers(Aarray, total, stream.device, "array of A");
  const auto b = read_pointers(Barray, total, stream.device, "array of B");
  const auto c = read_pointers(Carray, total, stream.device, "array of C");
  const std::size_t scalar_bytes = computeType == CUBLAS_COMPUTE_64F ? 8 : 4;
  std::size_t at = 0;
  for (int g = 0; g < group_count; ++g) {
    const Shape s{transa_array[g], transb_array[g], m_array[g],   n_array[g],
                  k_array[g],      lda_array[g],    ldb_array[g], ldc_array[g]};
    if (const cublasStatus_t status = check_call(handle, call, s); status != CUBLAS_STATUS_SUCCESS)
      return status;
    for (int i = 0; i < group_size[g]; ++i, ++at) {
      Product p = make_product(call, s, {Atype, Btype, Ctype, computeType}, a[at], b[at], c[at]);
      const std::size_t offset = static_cast<std::size_t>(g) * scalar_bytes;
      p.alpha =
          scalar(static_cast<const char*>(alpha_array) + offset, *handle, computeType, "alpha");
      p.beta = scalar(static_cast<const char*>(beta_array) + offset, *handle, computeType, "beta");
      if (const cublasStatus_t status = check_product(p); status != CUBLAS_STATUS_SUCCESS)
        return status;
      check_grouped_pointers(p, k_array[g]);
      run_product(p, stream.device);
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}
