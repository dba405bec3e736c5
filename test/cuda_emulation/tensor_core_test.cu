// The matrix instructions against a plain product.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <vector>

#include "test/cuda_emulation/device_access.h"
#include "test/cuda_emulation/support.h"
#include "test/cuda_emulation/tensor_core.h"
#include "test/support/catch.h"

using namespace cuda_emulation::test;
using Catch::Matchers::Contains;

namespace {

// C (16, 8) = A (16, 16) B (16, 8), all row-major; B by rows in shared memory, read transposed.
__global__ void product_kernel(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b) {
  __shared__ __align__(16) __nv_bfloat16 left[16 * 16];
  __shared__ __align__(16) __nv_bfloat16 right[16 * 16];
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) {
    left[i] = a[i];
    right[i] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : __nv_bfloat16(0.0f);
  }
  __syncwarp();
  unsigned ra[4], rb[4];
  // Matrices 0..3 of A: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15.
  const int matrix = lane / 8, row = lane % 8;
  openmoe::cuda::load_matrices(ra, left + (row + matrix % 2 * 8) * 16 + matrix / 2 * 8);
  openmoe::cuda::load_matrices_transposed(rb, right + (row + matrix % 2 * 8) * 16 + matrix / 2 * 8);
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  openmoe::cuda::multiply_add(d, ra, rb[0], rb[1]);
  const int group = lane / 4, pair = lane % 4;
  c[group * 8 + 2 * pair] = d[0];
  c[group * 8 + 2 * pair + 1] = d[1];
  c[(group + 8) * 8 + 2 * pair] = d[2];
  c[(group + 8) * 8 + 2 * pair + 1] = d[3];
}

__global__ void misaligned_kernel(float* c) {
  __shared__ __align__(16) __nv_bfloat16 room[512];
  unsigned r[4];
  openmoe::cuda::load_matrices(r, room + threadIdx.x * 8 + 1);
  c[0] = static_cast<float>(r[0]);
}
__global__ void global_kernel(float* c, const __nv_bfloat16* x) {
  unsigned r[4];
  openmoe::cuda::load_matrices(r, x + threadIdx.x * 8);
  c[0] = static_cast<float>(r[0]);
}
__global__ void half_warp_kernel(float* c) {
  float d[4] = {};
  const unsigned a[4] = {};
  openmoe::cuda::multiply_add(d, a, 0, 0);
  c[0] = d[0];
}

}  // namespace

TEST_CASE("matrix instructions multiply") {
  std::vector<__nv_bfloat16> a, b;
  for (int i = 0; i < 256; ++i) a.push_back(__float2bfloat16(static_cast<float>(i * 13 % 17 - 8)));
  for (int i = 0; i < 128; ++i) b.push_back(__float2bfloat16(static_cast<float>(i * 5 % 13 - 6)));
  for (const std::uint64_t schedule : {0, 1, 2}) {
    const SeedScope scope(schedule);
    const DeviceBuffer<__nv_bfloat16> da(a), db(b);
    const DeviceBuffer<float> dc(128);
    require(launch(product_kernel, 1, 32, 0, nullptr, dc.data(), da.data(), db.data()));
    const auto c = dc.read();
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 8; ++j) {
        float sum = 0.0f;
        for (int k = 0; k < 16; ++k)
          sum += __bfloat162float(a[i * 16 + k]) * __bfloat162float(b[k * 8 + j]);
        CHECK(c[i * 8 + j] == sum);
      }
  }
}

TEST_CASE("matrix instructions need whole warps and aligned rows in shared memory") {
  const DeviceBuffer<float> c(1);
  const DeviceBuffer<__nv_bfloat16> x(std::vector<__nv_bfloat16>(256));
  CHECK_THAT(violation_of([&] { launch(misaligned_kernel, 1, 32, 0, nullptr, c.data()); }),
             Contains("not aligned to 16"));
  CHECK_THAT(violation_of([&] { launch(global_kernel, 1, 32, 0, nullptr, c.data(), x.data()); }),
             Contains("not shared memory"));
  CHECK_THAT(violation_of([&] { launch(half_warp_kernel, 1, 16, 0, nullptr, c.data()); }),
             Contains("without all 32 lanes"));
}
