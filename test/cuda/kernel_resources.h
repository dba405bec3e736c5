// What ptxas reported about each kernel of a build, and what the sources state: a kernel with the
// comment
//   // hot: at least 4 blocks per SM
//   // hot: at least 2 blocks per SM, with 53000 bytes of dynamic shared memory
// above it must not spill and must fit that often on a multiprocessor, in every instance and for
// every architecture built.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

namespace openmoe::test {

// One compiled instance of a kernel.
struct KernelReport {
  std::string mangled;
  std::string arch;  // "sm_90"
  std::int64_t registers = 0;
  std::int64_t spill_bytes = 0;
  std::int64_t shared_bytes = 0;  // static
};

inline std::vector<KernelReport> parse_ptxas(const std::string& text) {
  const std::regex entry("Compiling entry function '(\\S+)' for '(\\S+)'");
  const std::regex spills("(\\d+) bytes spill stores, (\\d+) bytes spill loads");
  const std::regex used("Used (\\d+) registers"), shared("(\\d+) bytes smem");
  std::vector<KernelReport> reports;
  std::istringstream lines(text);
  std::smatch match;
  for (std::string line; std::getline(lines, line);) {
    if (std::regex_search(line, match, entry)) reports.push_back({match[1], match[2]});
    if (reports.empty()) continue;
    KernelReport& report = reports.back();
    if (std::regex_search(line, match, spills))
      report.spill_bytes = std::stoll(match[1]) + std::stoll(match[2]);
    if (std::regex_search(line, match, used)) report.registers = std::stoll(match[1]);
    if (std::regex_search(line, match, shared)) report.shared_bytes = std::stoll(match[1]);
  }
  return reports;
}

// The statement above a kernel.
struct HotKernel {
  std::string name;  // without template arguments
  std::int64_t threads = 0;
  std::int64_t blocks = 0;
  std::int64_t dynamic_shared_bytes = 0;
};

// `constants`: values of the names in __launch_bounds__ that other files define.
inline std::vector<HotKernel> hot_kernels(const std::string& source,
                                          std::map<std::string, std::int64_t> constants) {
  const std::regex constant("constexpr int (k\\w+) = (\\d+);");
  for (std::sregex_iterator it(source.begin(), source.end(), constant), end; it != end; ++it)
    constants[(*it)[1]] = std::stoll((*it)[2]);
  const std::regex hot(
      "// hot: at least (\\d+) blocks? per SM(?:, with (\\d+) bytes of dynamic shared memory)?\\n"
      "(?:template[^\\n]*\\n)?__global__ void __launch_bounds__\\((\\w+)\\)\\s+(\\w+)\\(");
  std::vector<HotKernel> kernels;
  for (std::sregex_iterator it(source.begin(), source.end(), hot), end; it != end; ++it) {
    const std::smatch& match = *it;
    const auto threads = constants.find(match[3]);
    kernels.push_back({match[4], threads == constants.end() ? 0 : threads->second,
                       std::stoll(match[1]), match[2].matched ? std::stoll(match[2]) : 0});
  }
  return kernels;
}

// Blocks that fit on a multiprocessor at once. CUDA programming guide, table of technical
// specifications per compute capability.
inline std::int64_t blocks_per_sm(const KernelReport& report, std::int64_t threads,
                                  std::int64_t dynamic_shared_bytes) {
  const std::int64_t shared_total = (report.arch == "sm_80" ? 164 : 228) << 10, reserved = 1 << 10;
  const std::int64_t warps = threads / 32;
  const std::int64_t registers_per_warp = (report.registers * 32 + 255) / 256 * 256;
  const std::int64_t by_registers = 65536 / (registers_per_warp * warps), by_warps = 64 / warps;
  const std::int64_t by_shared =
      shared_total / (report.shared_bytes + dynamic_shared_bytes + reserved);
  return std::min({by_registers, by_warps, by_shared});
}

// Whether `mangled` is an instance of the kernel `name`: an Itanium name holds its length before
// it.
inline bool is_instance(const std::string& mangled, const std::string& name) {
  return mangled.find(std::to_string(name.size()) + name) != std::string::npos;
}

}  // namespace openmoe::test
