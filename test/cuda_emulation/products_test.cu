// cuBLAS and cuBLASLt: values of all transposes and types, and what they refuse.
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "test/cuda_emulation/support.h"
#include "test/support/catch.h"

using namespace cuda_emulation::test;
using Catch::Matchers::Contains;

namespace {

constexpr int M = 5, N = 7, K = 9;

struct Cublas {
  Cublas() { REQUIRE(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS); }
  ~Cublas() { cublasDestroy(handle); }
  cublasHandle_t handle = nullptr;
};

template <typename T>
std::vector<T> values(int n, int salt) {
  std::vector<T> x;
  for (int i = 0; i < n; ++i)
    x.push_back(static_cast<T>(static_cast<float>((i * 7 + salt) % 11 - 5)));
  return x;
}

// Column-major (rows, cols) with leading dimension ld.
template <typename T>
double at(const std::vector<T>& x, int ld, bool transposed, int row, int col) {
  return static_cast<double>(static_cast<float>(
      x[static_cast<std::size_t>(transposed ? row * ld + col : col * ld + row)]));
}

template <typename T, typename C>
void check_gemm(cudaDataType type, cudaDataType c_type) {
  const Cublas cublas;
  for (int transposes = 0; transposes < 4; ++transposes) {
    const bool ta = (transposes & 1) != 0, tb = (transposes & 2) != 0;
    const int lda = (ta ? K : M) + 1, ldb = (tb ? N : K) + 2, ldc = M + 3;
    const auto a = values<T>(lda * (ta ? M : K), 1), b = values<T>(ldb * (tb ? K : N), 4);
    const auto c = values<C>(ldc * N, 2);
    const DeviceBuffer<T> da(a), db(b);
    const DeviceBuffer<C> dc(c);
    const float alpha = 2.0f, beta = -1.0f;
    REQUIRE(cublasGemmEx(cublas.handle, ta ? CUBLAS_OP_T : CUBLAS_OP_N,
                         tb ? CUBLAS_OP_T : CUBLAS_OP_N, M, N, K, &alpha, da.data(), type, lda,
                         db.data(), type, ldb, &beta, dc.data(), c_type, ldc, CUBLAS_COMPUTE_32F,
                         CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
    const auto result = dc.read();
    for (int col = 0; col < N; ++col)
      for (int row = 0; row < ldc; ++row) {
        double sum = 0;
        if (row < M)
          for (int k = 0; k < K; ++k) sum += at(a, lda, ta, row, k) * at(b, ldb, tb, k, col);
        const double before = static_cast<float>(c[col * ldc + row]);
        // Integers this small are exact, rounding to bf16 apart.
        const float expected =
            row < M ? static_cast<float>(static_cast<C>(static_cast<float>(2 * sum - before)))
                    : static_cast<float>(before);
        CHECK(static_cast<float>(result[col * ldc + row]) == expected);
      }
  }
}

struct Buffers {
  DeviceBuffer<float> a{values<float>(64, 1)}, b{values<float>(64, 2)}, c{values<float>(64, 3)};
  float one = 1.0f, zero = 0.0f;
};

cublasStatus_t gemm(const Cublas& cublas, const Buffers& x, int m, int n, int k, int lda, int ldb,
                    int ldc, cublasComputeType_t compute = CUBLAS_COMPUTE_32F,
                    cudaDataType c_type = CUDA_R_32F) {
  return cublasGemmEx(cublas.handle, CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, &x.one, x.a.data(),
                      CUDA_R_32F, lda, x.b.data(), CUDA_R_32F, ldb, &x.zero, x.c.data(), c_type,
                      ldc, compute, CUBLAS_GEMM_DEFAULT);
}

struct LtProduct {
  LtProduct(std::int64_t lda, std::uint32_t alignment) {
    REQUIRE(cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS);
    REQUIRE(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) ==
            CUBLAS_STATUS_SUCCESS);
    REQUIRE(cublasLtMatrixLayoutCreate(&a, CUDA_R_32F, 4, 4, lda) == CUBLAS_STATUS_SUCCESS);
    REQUIRE(cublasLtMatrixLayoutCreate(&b, CUDA_R_32F, 4, 4, 4) == CUBLAS_STATUS_SUCCESS);
    REQUIRE(cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS);
    const std::uint64_t workspace = 1 << 20;
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      set(attribute, alignment);
  }
  ~LtProduct() {
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatrixLayoutDestroy(a);
    cublasLtMatrixLayoutDestroy(b);
    cublasLtMatmulDescDestroy(desc);
    cublasLtDestroy(handle);
  }
  template <typename T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    REQUIRE(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value) ==
            CUBLAS_STATUS_SUCCESS);
  }
  cublasStatus_t choose(cublasLtMatmulHeuristicResult_t& result) const {
    int count = 0;
    return cublasLtMatmulAlgoGetHeuristic(handle, desc, a, b, b, b, preference, 1, &result, &count);
  }
  cublasStatus_t run(const cublasLtMatmulAlgo_t& algorithm, const float* pa, const float* pb,
                     float* pc, void* workspace, std::size_t bytes) const {
    const float one = 1.0f, zero = 0.0f;
    return cublasLtMatmul(handle, desc, &one, pa, a, pb, b, &zero, pc, b, pc, b, &algorithm,
                          workspace, bytes, nullptr);
  }

  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
};

}  // namespace

TEST_CASE("products of all transposes and types") {
  check_gemm<float, float>(CUDA_R_32F, CUDA_R_32F);
  check_gemm<__nv_bfloat16, float>(CUDA_R_16BF, CUDA_R_32F);
  check_gemm<__nv_bfloat16, __nv_bfloat16>(CUDA_R_16BF, CUDA_R_16BF);
}

TEST_CASE("cuBLAS refuses bad leading dimensions and types") {
  const Cublas cublas;
  const Buffers x;
  CHECK(gemm(cublas, x, 4, 4, 4, 4, 4, 4) == CUBLAS_STATUS_SUCCESS);
  CHECK(gemm(cublas, x, 4, 4, 4, 3, 4, 4) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK_THAT(cublasGetStatusString(CUBLAS_STATUS_INVALID_VALUE),
             Contains("A 4 x 4 f32, ld 3") && Contains("4 at least"));
  CHECK(gemm(cublas, x, 4, 4, 8, 4, 7, 4) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(gemm(cublas, x, 4, 4, 4, 4, 4, 3) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(gemm(cublas, x, -1, 4, 4, 4, 4, 4) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(gemm(cublas, x, 4, 4, 4, 4, 4, 4, CUBLAS_COMPUTE_16F) == CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK(gemm(cublas, x, 4, 4, 4, 4, 4, 4, CUBLAS_COMPUTE_32F, CUDA_R_16BF) ==
        CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK_THAT(cublasGetStatusString(CUBLAS_STATUS_NOT_SUPPORTED), Contains("A f32, B f32, C bf16"));
}

TEST_CASE("cuBLAS operands must be device memory, large enough, written, aligned", "[accesses]") {
  const Cublas cublas;
  const Buffers x;
  std::vector<float> host(64, 1.0f);
  const auto multiply = [&](const void* a, void* c) {
    return cublasGemmEx(cublas.handle, CUBLAS_OP_N, CUBLAS_OP_N, 8, 8, 8, &x.one, a, CUDA_R_32F, 8,
                        x.b.data(), CUDA_R_32F, 8, &x.zero, c, CUDA_R_32F, 8, CUBLAS_COMPUTE_32F,
                        CUBLAS_GEMM_DEFAULT);
  };
  CHECK(multiply(x.a.data(), x.c.data()) == CUBLAS_STATUS_SUCCESS);
  CHECK_THAT(violation_of([&] { multiply(host.data(), x.c.data()); }),
             Contains("cublasGemmEx, matrix A") && Contains("a host pointer"));
  CHECK_THAT(violation_of([&] { multiply(x.a.data() + 1, x.c.data()); }),
             Contains("matrix A: 32 bytes at byte 228"));
  CHECK_THAT(violation_of([&] { multiply(x.a.data(), x.c.data() + 1); }),
             Contains("the result: 32 bytes"));
  CHECK(multiply(reinterpret_cast<const char*>(x.a.data()) + 2, x.c.data()) ==
        CUBLAS_STATUS_INVALID_VALUE);
  const DeviceBuffer<float> fresh(64);
  CHECK_THAT(violation_of([&] { multiply(fresh.data(), x.c.data()); }),
             Contains("nothing has written"));
  // Alpha on the device while the handle says host.
  CHECK_THAT(violation_of([&] {
               cublasSgemm(cublas.handle, CUBLAS_OP_N, CUBLAS_OP_N, 8, 8, 8, x.a.data(), x.a.data(),
                           8, x.b.data(), 8, &x.zero, x.c.data(), 8);
             }),
             Contains("alpha is a device pointer"));
  CHECK_THAT(violation_of([&] {
               cublasSgemmStridedBatched(cublas.handle, CUBLAS_OP_N, CUBLAS_OP_N, 4, 4, 4, &x.one,
                                         x.a.data(), 4, 16, x.b.data(), 4, 16, &x.zero, x.c.data(),
                                         4, 8, 2);
             }),
             Contains("overlap"));
}

TEST_CASE("batched and grouped products equal single ones") {
  const Cublas cublas;
  const int rows[] = {3, 0, 5};
  const float one = 1.0f, zero = 0.0f;
  const auto a = values<float>(4 * 8, 1), b = values<float>(3 * 16, 5);
  const DeviceBuffer<float> da(a), db(b), single(std::vector<float>(4 * 8, 0.0f)),
      grouped(std::vector<float>(4 * 8, 0.0f));
  std::vector<const void*> pa, pb;
  std::vector<void*> pc;
  int row = 0;
  for (int g = 0; g < 3; ++g) {
    const float* x = da.data() + 4 * row;
    REQUIRE(cublasSgemm(cublas.handle, CUBLAS_OP_N, CUBLAS_OP_N, 4, rows[g], 4, &one,
                        db.data() + 16 * g, 4, x, 4, &zero, single.data() + 4 * row,
                        4) == CUBLAS_STATUS_SUCCESS);
    pa.push_back(db.data() + 16 * g);
    pb.push_back(x);
    pc.push_back(grouped.data() + 4 * row);
    row += rows[g];
  }
  const DeviceBuffer<const void*> da_pointers(pa), db_pointers(pb);
  const DeviceBuffer<void*> dc_pointers(pc);
  const cublasOperation_t ops[] = {CUBLAS_OP_N, CUBLAS_OP_N, CUBLAS_OP_N};
  const int four[] = {4, 4, 4}, size[] = {1, 1, 1};
  const float ones[] = {1, 1, 1}, zeros[] = {0, 0, 0};
  const auto run = [&](const void* const* first, cudaDataType_t c_type) {
    return cublasGemmGroupedBatchedEx(cublas.handle, ops, ops, four, rows, four, ones, first,
                                      CUDA_R_32F, four, db_pointers.data(), CUDA_R_32F, four, zeros,
                                      dc_pointers.data(), c_type, four, 3, size,
                                      CUBLAS_COMPUTE_32F);
  };
  REQUIRE(run(da_pointers.data(), CUDA_R_32F) == CUBLAS_STATUS_SUCCESS);
  CHECK(grouped.read() == single.read());
  CHECK(run(da_pointers.data(), CUDA_R_16BF) == CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK_THAT(violation_of([&] { run(pa.data(), CUDA_R_32F); }),
             Contains("array of A") && Contains("a host pointer"));
}

TEST_CASE("grouped products of bf16 want pointers as aligned as their sums are long") {
  const Cublas cublas;
  const DeviceBuffer<__nv_bfloat16> a(values<__nv_bfloat16>(80, 1)),
      b(values<__nv_bfloat16>(80, 2)), c(values<__nv_bfloat16>(80, 3));
  const DeviceBuffer<const void*> pb(std::vector<const void*>{b.data()});
  const DeviceBuffer<void*> pc(std::vector<void*>{c.data()});
  const auto run = [&](int k, int shift) {
    const DeviceBuffer<const void*> pa(std::vector<const void*>{a.data() + shift});
    const cublasOperation_t op = CUBLAS_OP_N;
    const int m = 4, n = 4, size = 1;
    const float one = 1.0f, zero = 0.0f;
    return cublasGemmGroupedBatchedEx(cublas.handle, &op, &op, &m, &n, &k, &one, pa.data(),
                                      CUDA_R_16BF, &m, pb.data(), CUDA_R_16BF, &k, &zero, pc.data(),
                                      CUDA_R_16BF, &m, 1, &size, CUBLAS_COMPUTE_32F);
  };
  CHECK(run(8, 8) == CUBLAS_STATUS_SUCCESS);
  CHECK(run(6, 2) == CUBLAS_STATUS_SUCCESS);
  CHECK(run(5, 1) == CUBLAS_STATUS_SUCCESS);
  CHECK_THAT(violation_of([&] { run(8, 4); }), Contains("not aligned to 16 bytes"));
  CHECK_THAT(violation_of([&] { run(6, 1); }), Contains("not aligned to 4 bytes"));
}

TEST_CASE("cuBLASLt holds callers to what they told the heuristic") {
  const Buffers x;
  const DeviceBuffer<char> workspace(1 << 20);
  const LtProduct product(4, 16), other(5, 16);
  cublasLtMatmulHeuristicResult_t chosen{};
  REQUIRE(product.choose(chosen) == CUBLAS_STATUS_SUCCESS);
  const auto run = [&](const LtProduct& p, int shift, std::size_t bytes) {
    return p.run(chosen.algo, x.a.data() + shift, x.b.data(), x.c.data(), workspace.data(), bytes);
  };
  REQUIRE(run(product, 0, 1 << 20) == CUBLAS_STATUS_SUCCESS);
  const auto a = values<float>(64, 1), b = values<float>(64, 2);
  const auto c = x.c.read();
  float sum = 0.0f;
  for (int k = 0; k < 4; ++k) sum += a[k * 4 + 1] * b[2 * 4 + k];
  CHECK(c[2 * 4 + 1] == sum);
  CHECK(run(product, 1, 1 << 20) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK_THAT(cublasGetStatusString(CUBLAS_STATUS_INVALID_VALUE),
             Contains("matrix A is not aligned to the 16 bytes"));
  CHECK(run(other, 0, 1 << 20) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(run(product, 0, 16) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK_THAT(violation_of([&] { run(product, 0, 2 << 20); }), Contains("the workspace"));
  cublasLtMatmulHeuristicResult_t none{};
  CHECK(LtProduct(3, 16).choose(none) == CUBLAS_STATUS_INVALID_VALUE);
}

TEST_CASE("cuBLASLt must be told to add up parts of bf16 results in f32") {
  LtProduct product(4, 16);
  cublasLtMatrixLayout_t narrow = nullptr;
  REQUIRE(cublasLtMatrixLayoutCreate(&narrow, CUDA_R_16BF, 4, 4, 4) == CUBLAS_STATUS_SUCCESS);
  cublasStatus_t status = CUBLAS_STATUS_NOT_INITIALIZED;
  const auto choose = [&] {
    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    status = cublasLtMatmulAlgoGetHeuristic(product.handle, product.desc, narrow, narrow, narrow,
                                            narrow, product.preference, 1, &result, &count);
  };
  CHECK_THAT(violation_of(choose), Contains("added up in bf16"));
  product.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
              std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  CHECK(violation_of(choose) == "");
  CHECK(status == CUBLAS_STATUS_SUCCESS);
  cublasLtMatrixLayoutDestroy(narrow);
}
