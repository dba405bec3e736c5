#include "cublasLt.h"

#include <cstring>
#include <mutex>

#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/gemm.h"
#include "test/cuda_emulation/runtime/streams.h"
#include "test/cuda_emulation/runtime/violation.h"

struct cublasLtContext {
  int device = 0;
};
struct cublasLtMatmulDescOpaque_t {
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F;
  cublasOperation_t transa = CUBLAS_OP_N;
  cublasOperation_t transb = CUBLAS_OP_N;
};
struct cublasLtMatrixLayoutOpaque_t {
  cudaDataType_t type = CUDA_R_32F;
  std::uint64_t rows = 0;
  std::uint64_t cols = 0;
  std::int64_t ld = 0;
  std::int32_t order = CUBLASLT_ORDER_COL;
  std::int32_t batch = 1;
  std::int64_t stride = 0;
};
struct cublasLtMatmulPreferenceOpaque_t {
  std::uint64_t workspace_bytes = 0;
  std::uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C, D
  std::uint32_t reduction_schemes = CUBLASLT_REDUCTION_SCHEME_MASK;
};

namespace cuda_emulation {
namespace {

constexpr std::uint64_t kAlgorithmMark = 0x6f70656e6d6f6521;
// What the emulated algorithms ask for, so that a missing workspace is seen.
constexpr std::size_t kWorkspaceBytes = 4096;

template <typename T>
cublasStatus_t take(T& field, const void* value, std::size_t bytes, const char* what) {
  if (value == nullptr || bytes != sizeof field)
    return refuse(CUBLAS_STATUS_INVALID_VALUE,
                  text(what, ": ", bytes, " bytes given, ", sizeof field, " expected"));
  std::memcpy(&field, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

Matrix matrix(const cublasLtMatrixLayoutOpaque_t& layout, const void* data, bool transposed) {
  Matrix m;
  m.data = const_cast<void*>(data);
  m.type = layout.type;
  m.rows = static_cast<std::int64_t>(layout.rows);
  m.cols = static_cast<std::int64_t>(layout.cols);
  m.ld = layout.ld;
  m.row_major = layout.order == CUBLASLT_ORDER_ROW;
  m.transposed = transposed;
  return m;
}

struct Layouts {
  const cublasLtMatrixLayoutOpaque_t *a, *b, *c, *d;
};

Product make_product(const cublasLtMatmulDescOpaque_t& desc, const Layouts& layouts, const void* a,
                     const void* b, const void* c, const void* d) {
  Product p;
  p.call = "cublasLtMatmul";
  p.compute = desc.compute;
  p.a = matrix(*layouts.a, a, desc.transa != CUBLAS_OP_N);
  p.b = matrix(*layouts.b, b, desc.transb != CUBLAS_OP_N);
  p.c = matrix(*layouts.c, c, false);
  p.d = matrix(*layouts.d, d, false);
  return p;
}

cublasStatus_t check_scale(const cublasLtMatmulDescOpaque_t& desc) {
  const bool wide =
      desc.compute == CUBLAS_COMPUTE_64F || desc.compute == CUBLAS_COMPUTE_64F_PEDANTIC;
  if (desc.scale == (wide ? CUDA_R_64F : CUDA_R_32F)) return CUBLAS_STATUS_SUCCESS;
  return refuse(CUBLAS_STATUS_NOT_SUPPORTED,
                text("cublasLt: scale type ", type_name(desc.scale), " with compute type ",
                     static_cast<int>(desc.compute)));
}

cublasStatus_t check_layouts(const cublasLtMatmulDescOpaque_t& desc, const Layouts& l) {
  if (const cublasStatus_t status = check_scale(desc); status != CUBLAS_STATUS_SUCCESS)
    return status;
  const Product p = make_product(desc, l, nullptr, nullptr, nullptr, nullptr);
  if (const cublasStatus_t status = check_product(p); status != CUBLAS_STATUS_SUCCESS)
    return status;
  if (l.a->batch != l.d->batch || l.b->batch != l.d->batch || l.c->batch != l.d->batch)
    return refuse(CUBLAS_STATUS_INVALID_VALUE, "cublasLt: batch counts differ");
  return CUBLAS_STATUS_SUCCESS;
}

// Identifies what a heuristic was asked for.
std::uint64_t fingerprint(const cublasLtMatmulDescOpaque_t& desc, const Layouts& l) {
  std::uint64_t hash = 1469598103934665603u;
  const auto mix = [&hash](std::uint64_t value) { hash = (hash ^ value) * 1099511628211u; };
  mix(desc.compute);
  mix(desc.transa);
  mix(desc.transb);
  for (const cublasLtMatrixLayoutOpaque_t* m : {l.a, l.b, l.c, l.d}) {
    mix(m->type);
    mix(m->rows);
    mix(m->cols);
    mix(static_cast<std::uint64_t>(m->ld));
    mix(static_cast<std::uint64_t>(m->order));
    mix(static_cast<std::uint64_t>(m->batch));
  }
  return hash;
}

double scalar(const void* p, const cublasLtMatmulDescOpaque_t& desc, const char* name) {
  if (device_memory::contains(p))
    violation(text("cublasLtMatmul: ", name, " is a device pointer, but the pointer mode is host"));
  return desc.scale == CUDA_R_64F ? *static_cast<const double*>(p)
                                  : static_cast<double>(*static_cast<const float*>(p));
}

cublasStatus_t check_algorithm(const cublasLtMatmulAlgo_t& algo,
                               const cublasLtMatmulDescOpaque_t& desc, const Layouts& l,
                               const Product& p, std::size_t workspace_bytes) {
  if (algo.data[0] != kAlgorithmMark)
    return refuse(CUBLAS_STATUS_INVALID_VALUE,
                  "cublasLtMatmul: an algorithm that no heuristic gave");
  if (algo.data[1] != fingerprint(desc, l))
    return refuse(CUBLAS_STATUS_INVALID_VALUE,
                  "cublasLtMatmul: the algorithm was given for other layouts");
  const void* data[] = {p.a.data, p.b.data, p.c.data, p.d.data};
  for (std::size_t i = 0; i < 4; ++i)
    if (reinterpret_cast<std::uintptr_t>(data[i]) % algo.data[2 + i] != 0)
      return refuse(CUBLAS_STATUS_INVALID_VALUE,
                    text("cublasLtMatmul: matrix ", "ABCD"[i], " is not aligned to the ",
                         algo.data[2 + i], " bytes promised to the heuristic"));
  if (workspace_bytes < algo.data[6])
    return refuse(CUBLAS_STATUS_INVALID_VALUE,
                  text("cublasLtMatmul: workspace of ", workspace_bytes, " bytes, ", algo.data[6],
                       " needed"));
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace
}  // namespace cuda_emulation

using namespace cuda_emulation;

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext{current_device()};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
std::size_t cublasLtGetVersion() {
  return CUBLAS_VERSION;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t computeType,
                                        cudaDataType_t scaleType) {
  *desc = new cublasLtMatmulDescOpaque_t{computeType, scaleType, CUBLAS_OP_N, CUBLAS_OP_N};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  std::int32_t number = 0;
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return take(desc->transa, value, bytes, "CUBLASLT_MATMUL_DESC_TRANSA");
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return take(desc->transb, value, bytes, "CUBLASLT_MATMUL_DESC_TRANSB");
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
    case CUBLASLT_MATMUL_DESC_TRANSC:
    case CUBLASLT_MATMUL_DESC_EPILOGUE: {
      const cublasStatus_t status = take(number, value, bytes, "cublasLtMatmulDescSetAttribute");
      const int plain = attribute == CUBLASLT_MATMUL_DESC_EPILOGUE ? CUBLASLT_EPILOGUE_DEFAULT : 0;
      if (status != CUBLAS_STATUS_SUCCESS || number == plain) return status;
      break;
    }
    default:
      break;
  }
  return refuse(CUBLAS_STATUS_NOT_SUPPORTED,
                text("cublasLtMatmulDescSetAttribute: attribute ", static_cast<int>(attribute),
                     ", value ", number, ": not emulated"));
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          std::uint64_t rows, std::uint64_t cols, std::int64_t ld) {
  *layout = new cublasLtMatrixLayoutOpaque_t;
  (*layout)->type = type;
  (*layout)->rows = rows;
  (*layout)->cols = cols;
  (*layout)->ld = ld;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, std::size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      return take(layout->type, value, bytes, "CUBLASLT_MATRIX_LAYOUT_TYPE");
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return take(layout->order, value, bytes, "CUBLASLT_MATRIX_LAYOUT_ORDER");
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      return take(layout->rows, value, bytes, "CUBLASLT_MATRIX_LAYOUT_ROWS");
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      return take(layout->cols, value, bytes, "CUBLASLT_MATRIX_LAYOUT_COLS");
    case CUBLASLT_MATRIX_LAYOUT_LD:
      return take(layout->ld, value, bytes, "CUBLASLT_MATRIX_LAYOUT_LD");
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return take(layout->batch, value, bytes, "CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT");
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return take(layout->stride, value, bytes, "CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET");
  }
  return refuse(CUBLAS_STATUS_INVALID_VALUE,
                text("cublasLtMatrixLayoutSetAttribute: attribute ", static_cast<int>(attribute)));
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, std::size_t bytes) {
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
    return take(preference->workspace_bytes, value, bytes,
                "CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES");
  if (attribute >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
      attribute <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES)
    return take(preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES],
                value, bytes, "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT");
  if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK)
    return take(preference->reduction_schemes, value, bytes,
                "CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK");
  return refuse(CUBLAS_STATUS_NOT_SUPPORTED,
                text("cublasLtMatmulPreferenceSetAttribute: attribute ",
                     static_cast<int>(attribute), ": not emulated"));
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t Adesc,
    cublasLtMatrixLayout_t Bdesc, cublasLtMatrixLayout_t Cdesc, cublasLtMatrixLayout_t Ddesc,
    cublasLtMatmulPreference_t preference, int requestedAlgoCount,
    cublasLtMatmulHeuristicResult_t results[], int* returnAlgoCount) {
  *returnAlgoCount = 0;
  if (handle == nullptr) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "cublasLt: no handle");
  if (requestedAlgoCount < 1)
    return refuse(CUBLAS_STATUS_INVALID_VALUE, "cublasLt: no algorithm asked for");
  const Layouts layouts{Adesc, Bdesc, Cdesc, Ddesc};
  if (const cublasStatus_t status = check_layouts(*desc, layouts); status != CUBLAS_STATUS_SUCCESS)
    return status;
  // A device may then choose to, and nothing but less accurate numbers would show it.
  constexpr std::uint32_t kInOutputType =
      CUBLASLT_REDUCTION_SCHEME_INPLACE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
  if (Ddesc->type == CUDA_R_16BF && desc->compute == CUBLAS_COMPUTE_32F &&
      (preference->reduction_schemes & kInOutputType) != 0)
    violation(
        "cublasLtMatmulAlgoGetHeuristic: parts of sums may be added up in bf16; "
        "CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK forbids it");
  cublasLtMatmulHeuristicResult_t& result = results[0];
  result = cublasLtMatmulHeuristicResult_t{};
  result.state = CUBLAS_STATUS_SUCCESS;
  result.wavesCount = 1.0f;
  result.workspaceSize = preference->workspace_bytes < kWorkspaceBytes ? 0 : kWorkspaceBytes;
  result.algo.data[0] = kAlgorithmMark;
  result.algo.data[1] = fingerprint(*desc, layouts);
  for (std::size_t i = 0; i < 4; ++i) {
    const std::uint32_t alignment = preference->alignment[i];
    if (alignment == 0 || (alignment & (alignment - 1)) != 0)
      return refuse(CUBLAS_STATUS_INVALID_VALUE,
                    text("cublasLt: alignment of ", alignment, " bytes"));
    result.algo.data[2 + i] = alignment;
  }
  result.algo.data[6] = result.workspaceSize;
  *returnAlgoCount = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* A, cublasLtMatrixLayout_t Adesc, const void* B,
                              cublasLtMatrixLayout_t Bdesc, const void* beta, const void* C,
                              cublasLtMatrixLayout_t Cdesc, void* D, cublasLtMatrixLayout_t Ddesc,
                              const cublasLtMatmulAlgo_t* algo, void* workspace,
                              std::size_t workspaceSizeInBytes, cudaStream_t handle_of_stream) {
  const std::lock_guard lock(api_mutex());
  const char* call = "cublasLtMatmul";
  if (handle == nullptr) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "cublasLt: no handle");
  if (handle->device != current_device())
    violation(text(call, ": a handle of device ", handle->device, " while device ",
                   current_device(), " is current"));
  const Layouts layouts{Adesc, Bdesc, Cdesc, Ddesc};
  if (const cublasStatus_t status = check_layouts(*desc, layouts); status != CUBLAS_STATUS_SUCCESS)
    return status;
  Product p = make_product(*desc, layouts, A, B, C, D);
  if (const cublasStatus_t status = check_product(p); status != CUBLAS_STATUS_SUCCESS)
    return status;
  if (algo != nullptr)
    if (const cublasStatus_t status =
            check_algorithm(*algo, *desc, layouts, p, workspaceSizeInBytes);
        status != CUBLAS_STATUS_SUCCESS)
      return status;
  CUstream_st& stream = stream_of(handle_of_stream, call);
  Operation operation(stream, call);
  if (workspaceSizeInBytes > 0) {
    if (reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0)
      return refuse(CUBLAS_STATUS_INVALID_VALUE,
                    "cublasLtMatmul: workspace not aligned to 256 bytes");
    device_memory::check_range(workspace, workspaceSizeInBytes, stream.device,
                               "cublasLtMatmul, the workspace");
    const std::size_t used = algo == nullptr ? 0 : algo->data[6];
    device_memory::write_range(workspace, used, stream.device, "cublasLtMatmul, the workspace");
  }
  p.alpha = scalar(alpha, *desc, "alpha");
  p.beta = scalar(beta, *desc, "beta");
  for (std::int32_t i = 0; i < Ddesc->batch; ++i) {
    const auto at = [i](const void* base, const cublasLtMatrixLayoutOpaque_t& layout) {
      return static_cast<char*>(const_cast<void*>(base)) +
             i * layout.stride * static_cast<std::int64_t>(element_bytes(layout.type));
    };
    p.a.data = at(A, *Adesc);
    p.b.data = at(B, *Bdesc);
    p.c.data = at(C, *Cdesc);
    p.d.data = at(D, *Ddesc);
    run_product(p, stream.device);
  }
  return CUBLAS_STATUS_SUCCESS;
}
