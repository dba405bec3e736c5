// How compiled kernels are judged, on made-up reports. The real ones: built_kernels_test.cpp.
#include "test/cuda/kernel_resources.h"
#include "test/support/catch.h"

using namespace openmoe::test;

namespace {

const char* const kReport =
    "ptxas info    : 0 bytes gmem\n"
    "ptxas info    : Compiling entry function '_ZN7openmoe4cuda10add_kernelEPfx' for 'sm_80'\n"
    "ptxas info    : Function properties for _ZN7openmoe4cuda10add_kernelEPfx\n"
    "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
    "ptxas info    : Used 40 registers, used 1 barriers, 256 bytes smem, 400 bytes cmem[0]\n"
    "ptxas info    : Compiling entry function '_ZN7openmoe4cuda10add_kernelEPfx' for 'sm_90'\n"
    "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    "ptxas info    : Used 33 registers, used 0 barriers, 400 bytes cmem[0]\n";

}  // namespace

TEST_CASE("kernel resources: reports of ptxas and statements of sources are understood", "[cuda]") {
  const auto reports = parse_ptxas(kReport);
  REQUIRE(reports.size() == 2);
  CHECK(reports[0].arch == "sm_80");
  CHECK(reports[0].registers == 40);
  CHECK(reports[0].spill_bytes == 16);
  CHECK(reports[0].shared_bytes == 256);
  CHECK(reports[1].registers == 33);
  CHECK(reports[1].spill_bytes == 0);
  CHECK(is_instance(reports[0].mangled, "add_kernel"));
  CHECK_FALSE(is_instance(reports[0].mangled, "d_kernel"));

  const auto kernels = hot_kernels(
      "constexpr int kThreads = 256;\n"
      "// hot: at least 6 blocks per SM\n"
      "template <int kWidth>\n"
      "__global__ void __launch_bounds__(kThreads)\n"
      "add_kernel(float* y) {}\n"
      "// hot: at least 1 block per SM, with 100000 bytes of dynamic shared memory\n"
      "__global__ void __launch_bounds__(kOther) big_kernel(int x) {}\n"
      "__global__ void __launch_bounds__(kThreads) cold_kernel() {}\n",
      {{"kOther", 128}});
  REQUIRE(kernels.size() == 2);
  CHECK(kernels[0].name == "add_kernel");
  CHECK(kernels[0].threads == 256);
  CHECK(kernels[0].blocks == 6);
  CHECK(kernels[1].name == "big_kernel");
  CHECK(kernels[1].threads == 128);
  CHECK(kernels[1].dynamic_shared_bytes == 100000);
}

TEST_CASE("kernel resources: blocks per multiprocessor", "[cuda]") {
  KernelReport report{"", "sm_90", 32, 0, 0};
  CHECK(blocks_per_sm(report, 256, 0) == 8);  // all 64 warps
  report.registers = 33;                      // 40 after rounding, 10240 per block
  CHECK(blocks_per_sm(report, 256, 0) == 6);
  CHECK(blocks_per_sm(report, 256, 100000) == 2);
  report.arch = "sm_80";
  CHECK(blocks_per_sm(report, 256, 100000) == 1);
}
