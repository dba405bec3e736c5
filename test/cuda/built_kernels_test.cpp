// No hot kernel of this build may spill or fall below the occupancy stated beside it, as far as
// ptxas says. Only in builds with nvcc.
#include <filesystem>
#include <fstream>
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

}  // namespace

TEST_CASE("kernel resources: hot kernels neither spill nor lose occupancy", "[cuda]") {
  const std::filesystem::path sources = std::filesystem::path(OPENMOE_TEST_SOURCE_DIR) / "cuda";
  std::vector<KernelReport> reports;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(OPENMOE_TEST_CUDA_OBJECTS))
    if (entry.path().extension() == ".ptxas")
      for (const KernelReport& report : parse_ptxas(read_file(entry.path())))
        reports.push_back(report);
  REQUIRE_FALSE(reports.empty());
  std::size_t checked = 0;
  for (const auto& entry : std::filesystem::directory_iterator(sources)) {
    if (entry.path().extension() != ".cu") continue;
    const std::string source = read_file(entry.path());
    for (const HotKernel& kernel :
         hot_kernels(source, {{"kAttentionThreads", 256}, {"kMmaThreads", 128}})) {
      INFO(entry.path().filename() << ": " << kernel.name);
      REQUIRE(kernel.threads > 0);
      std::size_t instances = 0;
      for (const KernelReport& report : reports) {
        if (!is_instance(report.mangled, kernel.name)) continue;
        ++instances;
        INFO(report.mangled << " for " << report.arch << ": " << report.registers << " registers, "
                            << report.shared_bytes << " bytes of static shared memory");
        CHECK(report.spill_bytes == 0);
        CHECK(blocks_per_sm(report, kernel.threads, kernel.dynamic_shared_bytes) >= kernel.blocks);
      }
      CHECK(instances > 0);
      ++checked;
    }
  }
  CHECK(checked >= 20);
}
