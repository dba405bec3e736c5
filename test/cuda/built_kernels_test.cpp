// No hot kernel of this build may spill or fall below the occupancy stated above it, as far as
// ptxas says. Only in builds with nvcc.
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "test/cuda/kernel_resources.h"
#include "test/support/catch.h"

using namespace openmoe::test;

namespace {

std::string read_file(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// Where a step spends its time outside of libraries: these must be stated hot. More may be.
const std::set<std::string> kMustBeHot = {"rms_norm_forward_kernel",
                                          "rms_norm_backward_kernel",
                                          "ffn_forward_kernel",
                                          "ffn_backward_kernel",
                                          "router_token_kernel",
                                          "router_queue_kernel",
                                          "router_backward_kernel",
                                          "cross_entropy_kernel",
                                          "factored_statistics_kernel",
                                          "factored_size_kernel",
                                          "factored_apply_kernel",
                                          "embedding_forward_kernel",
                                          "embedding_runs_kernel",
                                          "gather_rows_kernel",
                                          "add_rows_kernel",
                                          "combine_backward_kernel",
                                          "copy_rows_kernel",
                                          "attention_forward_kernel",
                                          "attention_delta_kernel",
                                          "attention_dq_kernel",
                                          "attention_dkv_kernel",
                                          "mma_forward_kernel",
                                          "mma_dq_kernel",
                                          "mma_dkv_kernel",
                                          "rope_kernel",
                                          "add_kernel",
                                          "multiply_kernel",
                                          "sum_of_squares_kernel",
                                          "convert_kernel"};

}  // namespace

TEST_CASE("kernel resources: hot kernels neither spill nor lose occupancy", "[cuda]") {
  const std::filesystem::path sources = std::filesystem::path(OPENMOE_TEST_SOURCE_DIR) / "cuda";
  const std::filesystem::path objects = OPENMOE_TEST_CUDA_OBJECTS;
  std::set<std::string> checked, architectures;
  for (const auto& entry : std::filesystem::directory_iterator(sources)) {
    if (entry.path().extension() != ".cu") continue;
    const std::string source = read_file(entry.path());
    const auto kernels = hot_kernels(source, {{"kAttentionThreads", 256}, {"kMmaThreads", 128}});
    INFO(entry.path().filename());
    CHECK(static_cast<std::int64_t>(kernels.size()) == num_hot_lines(source));
    if (kernels.empty()) continue;
    const std::filesystem::path log = objects / (entry.path().filename().string() + ".o.ptxas");
    REQUIRE(std::filesystem::exists(log));
    const auto reports = parse_ptxas(read_file(log));
    for (const std::string& fault : faults_of(kernels, reports)) FAIL_CHECK(fault);
    for (const HotKernel& kernel : kernels) checked.insert(kernel.name);
    for (const KernelReport& report : reports) architectures.insert(report.arch);
  }
  for (const std::string& name : kMustBeHot) {
    INFO(name << " must be stated hot");
    CHECK(checked.count(name) == 1);
  }
  CHECK_FALSE(architectures.empty());
}
