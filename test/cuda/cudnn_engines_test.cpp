// The real cuDNN and the real graphs, without a GPU: cuDNN compiles for devices that are described
// to it ("deviceless"), here over a driver that only lets modules load (fake_driver.cpp). Shown:
// its heuristics have engines for our graphs, its support checks pass, the kernels compile, and
// what workspace they want. Not shown: that they run. Only in builds with cuDNN.
#include <iostream>

#include "core/base/check.h"
#include "cuda/cudnn/attention_graph.h"
#include "cuda/cudnn/library.h"
#include "cuda/sequences.h"
#include "test/support/catch.h"

using namespace openmoe;
using namespace openmoe::cuda;
using Catch::Matchers::Contains;

namespace {

// False, and a line for ctest, where cuDNN is not installed.
bool has_cudnn() {
  const std::string& words = open_cudnn();
  if (!words.empty()) std::cout << "skipped: " << words << std::endl;
  return words.empty();
}

// What cuDNN 9 wants to know of a device; the numbers are from the data sheets.
AttentionTarget device(int sm_version) {
  const bool hopper = sm_version >= 90;
  return {
      .handle = nullptr,
      .device_properties = concat(
          R"({"deviceVer": )", sm_version * 10, R"(, "deviceName": ")", hopper ? "H100" : "A100",
          R"(", "driverVer": 13000, "cudaDeviceId": 0, "pciDeviceId": 0, "isTccDriver": 0,
          "supportCoopLaunch": 1, "totalGlobalMem": 85000000000, "maxGridSize": [2147483647, 65535,
          65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536, "maxRegistersPerSM":
          65536, "warpSize": 32, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM":
          2048, "maxSharedMemoryPerBlock": 49152, "reservedSharedMemoryPerBlock": 1024,
          "multiProcessorCount": )",
          hopper ? 132 : 108, R"(, "maxSharedMemoryPerBlockOptin": )", hopper ? 232448 : 166912,
          R"(, "smClockRateKHz": )", hopper ? 1980000 : 1410000, R"(, "memClockRateKHz": )",
          hopper ? 2619000 : 1593000, R"(, "l2CacheSize": )", hopper ? 52428800 : 41943040, "}"),
      .sm_version = sm_version};
}

// The model's own sizes: `rows` rows of 2048 positions, 24 heads.
AttentionProblem problem(std::int64_t rows, std::int64_t head_dim, bool backward) {
  return {.sequences = max_sequences(rows, 2048),
          .length = 2048,
          .heads = 24,
          .head_dim = head_dim,
          .positions = rows * 2048,
          .dtype = DType::bf16,
          .scale = 0.125f,
          .backward = backward};
}

}  // namespace

TEST_CASE("cudnn engines: the forward compiles for sm_80 and sm_90", "[cudnn]") {
  if (!has_cudnn()) return;
  for (const int sm_version : {80, 90})
    for (const std::int64_t head_dim : {64, 128}) {
      INFO("sm_" << sm_version << ", head width " << head_dim);
      AttentionGraph graph(problem(4, head_dim, false), device(sm_version));
      REQUIRE(graph.lower() == "");
      REQUIRE(graph.find() == "");
      REQUIRE(graph.compile() == "");
      CHECK_THAT(graph.engine(), Contains("eng"));
      CHECK(graph.workspace_bytes() <= 1 << 20);
    }
}

TEST_CASE("cudnn engines: the deterministic backward compiles for sm_90", "[cudnn]") {
  if (!has_cudnn()) return;
  for (const std::int64_t head_dim : {64, 128}) {
    INFO("head width " << head_dim);
    const AttentionProblem backward = problem(1, head_dim, true);
    AttentionGraph graph(backward, device(90));
    REQUIRE(graph.lower() == "");
    REQUIRE(graph.find() == "");
    REQUIRE(graph.compile() == "");
    // Before 9.25 a bf16 matrix of lengths for each sequence and head: why `auto` has a limit.
    const std::int64_t matrices = backward.sequences * backward.heads * 2048 * 2048 * 2;
    if (cudnn_version() < 92500)
      CHECK(graph.workspace_bytes() >= matrices);
    else
      CHECK(graph.workspace_bytes() < matrices);
  }
}

TEST_CASE("cudnn engines: what cuDNN refuses it refuses in words", "[cudnn]") {
  if (!has_cudnn()) return;
  const auto refusal = [](const AttentionProblem& p, int sm_version) {
    AttentionGraph graph(p, device(sm_version));
    std::string words = graph.lower();
    if (words.empty()) words = graph.find();
    return words;
  };
  CHECK_THAT(refusal(problem(1, 64, true), 80), Contains("Deterministic"));
  CHECK_THAT(refusal(problem(1, 60, true), 90), Contains("multiple of 8"));
  AttentionProblem f32 = problem(1, 64, true);
  f32.dtype = DType::f32;
  CHECK(refusal(f32, 90) != "");
}
