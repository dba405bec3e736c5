#include "cuda/gemm.h"

#include <algorithm>
#include <bit>

#include "core/base/check.h"
#include "core/base/error.h"
#include "cuda/check.h"
#include "cuda/launch.h"

namespace openmoe::cuda {
namespace {

// NVIDIA's recommendation for Hopper; the older ones need less.
constexpr std::int64_t kWorkspaceBytes = 32 << 20;
constexpr std::int64_t kLaneWorkspaceBytes = 8 << 20;
// cuBLASLt never asks for more alignment than this.
constexpr std::int64_t kMaxAlignment = 256;
// Jobs whose pointers fit in the arguments of one kernel.
constexpr int kPointerBatch = 64;

struct PointerBatch {
  const void* a[kPointerBatch];
  const void* b[kPointerBatch];
  const void* c[kPointerBatch];
};

// The pointer arrays of a grouped call lie on the device. As kernel arguments they need no staging
// memory that would have to outlive the call.
__global__ void store_pointers_kernel(const void** pointers, PointerBatch batch, int count,
                                      std::int64_t first, std::int64_t num_jobs) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= count) return;
  pointers[first + i] = batch.a[i];
  pointers[num_jobs + first + i] = batch.b[i];
  pointers[2 * num_jobs + first + i] = batch.c[i];
}

cudaDataType_t library_type(DType dtype) {
  OPENMOE_CHECK(dtype == DType::f32 || dtype == DType::bf16, "no product of ", name_of(dtype));
  return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF;
}

cublasOperation_t operation(const Operand& operand) {
  return operand.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
}

int as_int(std::int64_t value) {
  OPENMOE_CHECK(value <= 0x7fffffff, "size ", value, " of a product");
  return static_cast<int>(value);
}

std::int64_t alignment(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  return std::min<std::int64_t>(kMaxAlignment,
                                std::int64_t{1} << std::countr_zero(address | kMaxAlignment));
}

// The operand as cuBLAS sees it: its transpose, column-major. `rows` and `cols` are of the
// row-major product's factor.
cublasLtMatrixLayout_t make_layout(DType dtype, std::int64_t rows, std::int64_t cols,
                                   bool transposed, std::int64_t ld) {
  cublasLtMatrixLayout_t layout = nullptr;
  const std::int64_t stored_rows = transposed ? cols : rows, stored_cols = transposed ? rows : cols;
  OPENMOE_CUBLAS(cublasLtMatrixLayoutCreate(&layout, library_type(dtype),
                                            static_cast<std::uint64_t>(stored_cols),
                                            static_cast<std::uint64_t>(stored_rows), ld));
  return layout;
}

cublasHandle_t open_handle(cudaStream_t stream) {
  cublasHandle_t handle = nullptr;
  OPENMOE_CUBLAS(cublasCreate(&handle));
  OPENMOE_CUBLAS(cublasSetStream(handle, stream));
  // Sums of bf16 products stay f32 where the library adds them up in parts.
  OPENMOE_CUBLAS(cublasSetMathMode(
      handle, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                        CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  return handle;
}

}  // namespace

Gemm::Gemm(cudaStream_t stream) : stream_(stream) {
  handle_ = open_handle(stream_);
  OPENMOE_CUBLAS(cublasLtCreate(&lt_handle_));
}

std::int64_t Gemm::workspace_bytes() {
  return kWorkspaceBytes + static_cast<std::int64_t>(kSideLanes) * kLaneWorkspaceBytes;
}

void Gemm::use_workspace(void* data) {
  if (owns_workspace_) OPENMOE_CUDA(cudaFree(workspace_));  // waits for the products in it
  owns_workspace_ = false;
  workspace_ = nullptr;
  if (data != nullptr) set_workspace(data);
}

void Gemm::prepare_workspace() {
  if (workspace_ != nullptr) return;
  void* own = nullptr;
  const cudaError_t error = cudaMalloc(&own, static_cast<std::size_t>(workspace_bytes()));
  if (error != cudaSuccess)
    throw RuntimeFault(concat("cannot allocate ", workspace_bytes(),
                              " bytes of device memory for products: ", cudaGetErrorString(error)));
  set_workspace(own);
  owns_workspace_ = true;
}

// One part serves both libraries on stream_.
void Gemm::set_workspace(void* data) {
  workspace_ = static_cast<char*>(data);
  OPENMOE_CUBLAS(
      cublasSetWorkspace(handle_, workspace_, static_cast<std::size_t>(kWorkspaceBytes)));
  char* next = workspace_ + kWorkspaceBytes;
  for (const Lane& lane : lanes_) {
    if (lane.handle != nullptr)
      OPENMOE_CUBLAS(
          cublasSetWorkspace(lane.handle, next, static_cast<std::size_t>(kLaneWorkspaceBytes)));
    next += kLaneWorkspaceBytes;
  }
}

Gemm::~Gemm() {
  for (auto& [key, plan] : plans_) {
    if (plan.description != nullptr) cublasLtMatmulDescDestroy(plan.description);
    for (const cublasLtMatrixLayout_t layout : {plan.a, plan.b, plan.c})
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
  }
  if (handle_ != nullptr) cublasDestroy(handle_);
  if (lt_handle_ != nullptr) cublasLtDestroy(lt_handle_);
  for (const Lane& lane : lanes_) {
    if (lane.handle != nullptr) cublasDestroy(lane.handle);
    if (lane.stream != nullptr) cudaStreamDestroy(lane.stream);
    if (lane.done != nullptr) cudaEventDestroy(lane.done);
  }
  if (begun_ != nullptr) cudaEventDestroy(begun_);
  if (owns_workspace_) cudaFree(workspace_);
  cudaFree(pointers_);
}

const Gemm::Plan& Gemm::plan_for(const GemmJob& job, bool accumulate) {
  const PlanKey key{job.M,
                    job.N,
                    job.K,
                    job.a.ld,
                    job.b.ld,
                    job.ldc,
                    alignment(job.a.data),
                    alignment(job.b.data),
                    alignment(job.c),
                    static_cast<std::int64_t>(job.a.dtype),
                    static_cast<std::int64_t>(job.b.dtype),
                    static_cast<std::int64_t>(job.c_dtype),
                    job.a.transposed * 2 + job.b.transposed,
                    accumulate};
  const auto [found, fresh] = plans_.try_emplace(key);
  Plan& plan = found->second;
  if (!fresh) return plan;

  OPENMOE_CUBLAS(cublasLtMatmulDescCreate(&plan.description, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t first = operation(job.b), second = operation(job.a);
  OPENMOE_CUBLAS(cublasLtMatmulDescSetAttribute(plan.description, CUBLASLT_MATMUL_DESC_TRANSA,
                                                &first, sizeof first));
  OPENMOE_CUBLAS(cublasLtMatmulDescSetAttribute(plan.description, CUBLASLT_MATMUL_DESC_TRANSB,
                                                &second, sizeof second));
  plan.a = make_layout(job.b.dtype, job.K, job.N, job.b.transposed, job.b.ld);
  plan.b = make_layout(job.a.dtype, job.M, job.K, job.a.transposed, job.a.ld);
  plan.c = make_layout(job.c_dtype, job.M, job.N, false, job.ldc);

  cublasLtMatmulPreference_t preference = nullptr;
  OPENMOE_CUBLAS(cublasLtMatmulPreferenceCreate(&preference));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    OPENMOE_CUBLAS(
        cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(kWorkspaceBytes));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
         static_cast<std::uint32_t>(alignment(job.b.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
         static_cast<std::uint32_t>(alignment(job.a.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<std::uint32_t>(alignment(job.c)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<std::uint32_t>(alignment(job.c)));
  // Where a sum is cut into parts, they are added in f32, not rounded to bf16 before.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  cublasLtMatmulHeuristicResult_t result{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      lt_handle_, plan.description, plan.a, plan.b, plan.c, plan.c, preference, 1, &result, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) OPENMOE_CUBLAS(status);
  plan.found = status == CUBLAS_STATUS_SUCCESS && count > 0;
  plan.algorithm = result.algo;
  return plan;
}

// An empty sum: C = 0, or C unchanged.
void Gemm::clear_or_keep(const GemmJob& job, bool accumulate) {
  if (accumulate) return;
  const std::size_t element = static_cast<std::size_t>(size_of(job.c_dtype));
  OPENMOE_CUDA(cudaMemset2DAsync(job.c, static_cast<std::size_t>(job.ldc) * element, 0,
                                 static_cast<std::size_t>(job.N) * element,
                                 static_cast<std::size_t>(job.M), stream_));
}

void Gemm::product(const GemmJob& job, bool accumulate) {
  if (job.M == 0 || job.N == 0) return;
  if (job.K == 0) return clear_or_keep(job, accumulate);
  prepare_workspace();
  const Plan& plan = plan_for(job, accumulate);
  if (!plan.found) return single(handle_, job, accumulate);
  const float alpha = 1.0f, beta = accumulate ? 1.0f : 0.0f;
  OPENMOE_CUBLAS(cublasLtMatmul(lt_handle_, plan.description, &alpha, job.b.data, plan.a,
                                job.a.data, plan.b, &beta, job.c, plan.c, job.c, plan.c,
                                &plan.algorithm, workspace_,
                                static_cast<std::size_t>(kWorkspaceBytes), stream_));
}

// Without a plan: for sizes that change from call to call.
void Gemm::single(cublasHandle_t handle, const GemmJob& job, bool accumulate) {
  const float alpha = 1.0f, beta = accumulate ? 1.0f : 0.0f;
  OPENMOE_CUBLAS(cublasGemmEx(
      handle, operation(job.b), operation(job.a), as_int(job.N), as_int(job.M), as_int(job.K),
      &alpha, job.b.data, library_type(job.b.dtype), as_int(job.b.ld), job.a.data,
      library_type(job.a.dtype), as_int(job.a.ld), &beta, job.c, library_type(job.c_dtype),
      as_int(job.ldc), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void Gemm::upload_pointers(const std::vector<GemmJob>& jobs) {
  const auto count = static_cast<std::int64_t>(jobs.size());
  if (count > max_pointers_) {
    OPENMOE_CUDA(cudaFree(pointers_));
    pointers_ = nullptr;
    OPENMOE_CUDA(cudaMalloc(&pointers_, static_cast<std::size_t>(3 * count) * sizeof(void*)));
    max_pointers_ = count;
  }
  for (std::int64_t first = 0; first < count; first += kPointerBatch) {
    const int part = static_cast<int>(std::min<std::int64_t>(kPointerBatch, count - first));
    PointerBatch batch{};
    for (int i = 0; i < part; ++i) {
      const GemmJob& job = jobs[static_cast<std::size_t>(first + i)];
      batch.a[i] = job.b.data;
      batch.b[i] = job.a.data;
      batch.c[i] = job.c;
    }
    launch(stream_, {.blocks = 1, .threads = kPointerBatch}, store_pointers_kernel, pointers_,
           batch, part, first, count);
  }
}

void Gemm::open_lanes() {
  if (begun_ != nullptr) return;
  for (Lane& lane : lanes_) {
    OPENMOE_CUDA(cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking));
    OPENMOE_CUDA(cudaEventCreateWithFlags(&lane.done, cudaEventDisableTiming));
    lane.handle = open_handle(lane.stream);
  }
  set_workspace(workspace_);
  OPENMOE_CUDA(cudaEventCreateWithFlags(&begun_, cudaEventDisableTiming));
}

// The lanes begin when all before is done, and stream_ goes on when all of them are.
void Gemm::in_lanes(const std::vector<GemmJob>& jobs, bool accumulate) {
  const std::size_t used = std::min(jobs.size() - 1, kSideLanes);
  if (used > 0) {
    open_lanes();
    OPENMOE_CUDA(cudaEventRecord(begun_, stream_));
  }
  for (std::size_t lane = 0; lane < used; ++lane)
    OPENMOE_CUDA(cudaStreamWaitEvent(lanes_[lane].stream, begun_, 0));
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const std::size_t lane = i % (used + 1);
    single(lane == 0 ? handle_ : lanes_[lane - 1].handle, jobs[i], accumulate);
  }
  for (std::size_t lane = 0; lane < used; ++lane) {
    OPENMOE_CUDA(cudaEventRecord(lanes_[lane].done, lanes_[lane].stream));
    OPENMOE_CUDA(cudaStreamWaitEvent(stream_, lanes_[lane].done, 0));
  }
}

// False where cuBLAS has no such call for these products.
bool Gemm::in_one_call(const std::vector<GemmJob>& jobs, bool accumulate) {
  const GemmJob& kind = jobs.front();
  const std::size_t count = jobs.size();
  std::vector<cublasOperation_t> first(count, operation(kind.b)), second(count, operation(kind.a));
  std::vector<int> m, n, k, lda, ldb, ldc, size(count, 1);
  for (const GemmJob& job : jobs) {
    m.push_back(as_int(job.N));
    n.push_back(as_int(job.M));
    k.push_back(as_int(job.K));
    lda.push_back(as_int(job.b.ld));
    ldb.push_back(as_int(job.a.ld));
    ldc.push_back(as_int(job.ldc));
  }
  const std::vector<float> alpha(count, 1.0f), beta(count, accumulate ? 1.0f : 0.0f);
  upload_pointers(jobs);
  const cublasStatus_t status = cublasGemmGroupedBatchedEx(
      handle_, first.data(), second.data(), m.data(), n.data(), k.data(), alpha.data(), pointers_,
      library_type(kind.b.dtype), lda.data(), pointers_ + count, library_type(kind.a.dtype),
      ldb.data(), beta.data(), const_cast<void* const*>(pointers_ + 2 * count),
      library_type(kind.c_dtype), ldc.data(), as_int(static_cast<std::int64_t>(count)), size.data(),
      CUBLAS_COMPUTE_32F);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_ARCH_MISMATCH) return false;
  OPENMOE_CUBLAS(status);
  return true;
}

// What cuBLAS asks of pointers to bf16 in a grouped call. An odd width or a tensor that begins
// anywhere does not have it.
bool Gemm::may_group(const GemmJob& job) {
  if (job.a.dtype != job.b.dtype || job.a.dtype != job.c_dtype) return false;
  if (job.a.dtype == DType::f32) return true;
  const std::int64_t sum_bytes = job.K * size_of(job.a.dtype);
  const std::int64_t wanted = sum_bytes % 16 == 0 ? 16 : sum_bytes % 4 == 0 ? 4 : 2;
  return std::min({alignment(job.a.data), alignment(job.b.data), alignment(job.c)}) >= wanted;
}

void Gemm::grouped(const std::vector<GemmJob>& all_jobs, bool accumulate) {
  std::vector<GemmJob> jobs;
  for (const GemmJob& job : all_jobs) {
    if (job.M == 0 || job.N == 0) continue;
    if (job.K == 0)
      clear_or_keep(job, accumulate);
    else
      jobs.push_back(job);
  }
  if (jobs.empty()) return;
  prepare_workspace();
  if (has_grouped_ && std::all_of(jobs.begin(), jobs.end(), may_group)) {
    has_grouped_ = in_one_call(jobs, accumulate);
    if (has_grouped_) return;
  }
  in_lanes(jobs, accumulate);
}

}  // namespace openmoe::cuda
