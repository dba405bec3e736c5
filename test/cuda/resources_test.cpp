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

  CHECK(is_instance("_ZN4cuda10mma_kernelI13__nv_bfloat16Li64EEEvT_", "mma_kernel", "64"));
  CHECK_FALSE(is_instance("_ZN4cuda10mma_kernelI13__nv_bfloat16Li128EEEvT_", "mma_kernel", "64"));

  const std::string source =
      "constexpr int kThreads = 256;\n"
      "// hot: at least 6 blocks per SM\n"
      "// bytes: 12 of 8 per element of y (f32)\n"
      "template <int kWidth>\n"
      "__global__ void __launch_bounds__(kThreads)\n"
      "add_kernel(float* y) {}\n"
      "// hot <64>: at least 2 blocks per SM\n"
      "// hot <128>: at least 1 block per SM, with 100000 bytes of dynamic shared memory (D 4)\n"
      "__global__ void __launch_bounds__(kOther, 2) big_kernel(int x) {}\n"
      "__global__ void __launch_bounds__(kThreads) cold_kernel() {}\n";
  const auto kernels = hot_kernels(source, {{"kOther", 128}});
  REQUIRE(kernels.size() == 3);
  CHECK(num_hot_lines(source) == 3);
  CHECK(kernels[0].name == "add_kernel");
  CHECK(kernels[0].threads == 256);
  CHECK(kernels[0].blocks == 6);
  CHECK(kernels[0].bytes_moved == 12.0);
  CHECK(kernels[0].bytes_needed == 8.0);
  CHECK(kernels[1].name == "big_kernel");
  CHECK(kernels[1].last_argument == "64");
  CHECK(kernels[2].last_argument == "128");
  CHECK(kernels[2].threads == 128);
  CHECK(kernels[2].dynamic_shared_bytes == 100000);
  CHECK(kernels[2].bytes_needed == 0.0);
  // Not understood, which the test of built kernels sees by the count.
  const std::string misspelt =
      "\n// hot: 6 blocks per SM\n__global__ void __launch_bounds__(kOther) add_kernel() {}\n";
  CHECK(hot_kernels(misspelt, {{"kOther", 128}}).empty());
  CHECK(num_hot_lines(misspelt) == 1);
}

TEST_CASE("kernel resources: spills, lost occupancy and missing statements are faults", "[cuda]") {
  const HotKernel kernel{"add_kernel", "", 256, 6, 0, 12.0, 8.0};
  std::vector<KernelReport> reports = {{"_Z10add_kernelILi1EEvPf", "sm_80", 40, 0, 0},
                                       {"_Z10add_kernelILi4EEvPf", "sm_90", 40, 0, 0}};
  const auto only_fault = [&](const std::vector<HotKernel>& kernels) {
    const auto faults = faults_of(kernels, reports);
    return faults.size() == 1 ? faults[0] : std::to_string(faults.size()) + " faults";
  };
  const auto is_about = [](const std::string& fault, const char* what) {
    INFO(fault);
    return fault.find(what) != std::string::npos;
  };
  CHECK(faults_of({kernel}, reports).empty());

  reports[1].spill_bytes = 4;
  CHECK(is_about(only_fault({kernel}), "for sm_90: 4 bytes spilled"));
  reports[1].spill_bytes = 0;
  reports[0].registers = 41;
  CHECK(is_about(only_fault({kernel}), "for sm_80: 5 blocks per SM, stated are 6"));
  reports[0].registers = 40;
  reports[1].shared_bytes = 40000;
  CHECK(is_about(only_fault({kernel}), "for sm_90: 5 blocks per SM, stated are 6"));
  reports[1].shared_bytes = 0;

  HotKernel changed = kernel;
  changed.bytes_needed = 0.0;
  CHECK(is_about(only_fault({changed}), "no `// bytes:"));
  changed = kernel;
  changed.bytes_moved = 4.0;  // less than it must
  CHECK(is_about(only_fault({changed}), "no `// bytes:"));
  changed = kernel;
  changed.threads = 0;
  CHECK(is_about(only_fault({changed}), "__launch_bounds__"));
  changed = kernel;
  changed.name = "sub_kernel";
  CHECK(is_about(only_fault({changed}), "not compiled"));
  changed = kernel;
  changed.last_argument = "4";
  CHECK(is_about(only_fault({changed}), "not among those stated"));
}

TEST_CASE("kernel resources: blocks per multiprocessor", "[cuda]") {
  KernelReport report{"", "sm_90", 32, 0, 0};
  CHECK(blocks_per_sm(report, 256, 0) == 8);  // all 64 warps
  report.registers = 33;                      // 40 after rounding, 10240 per block
  CHECK(blocks_per_sm(report, 256, 0) == 6);
  CHECK(blocks_per_sm(report, 256, 100000) == 2);
  report.arch = "sm_80";
  CHECK(blocks_per_sm(report, 256, 100000) == 1);
  report.registers = 168;  // 5376 per warp: three warps in a quarter
  CHECK(blocks_per_sm(report, 128, 0) == 3);
  report.registers = 16;
  CHECK(blocks_per_sm(report, 32, 0) == 32);
}
