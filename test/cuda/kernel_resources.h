// What ptxas reported about each kernel of a build, and what the sources state above a hot kernel:
//   // hot: at least 4 blocks per SM
//   // bytes: 12 of 8 per element of logits (f32), 16 in flight per thread
// or, where instances differ, a line for each value of the last template argument:
//   // hot <64>: at least 4 blocks per SM, with 28160 bytes of dynamic shared memory
//   // hot <128>: at least 2 blocks per SM, with 52736 bytes of dynamic shared memory
//   // bytes: 8 of 8 per element of o (T 2048), 64 more from L2
//   // flops: 4096 of 4096 per element of o (tensor cores)
// No instance of it may spill, and each must fit that often on a multiprocessor, for every
// architecture built. bytes and flops: what one instance moves to and from memory and computes, of
// what the task needs at least; in flight: what a thread loads before it uses any of it.
// scripts/kernel_table.py makes a table of them.
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

// A statement above a kernel.
struct HotKernel {
  std::string name;           // without template arguments
  std::string last_argument;  // of the instances meant; empty: all
  std::int64_t threads = 0;   // 0: the name in __launch_bounds__ is not known
  std::int64_t blocks = 0;
  std::int64_t dynamic_shared_bytes = 0;
  double bytes_moved = 0.0;  // per element; 0: not stated
  double bytes_needed = 0.0;
};

// All statements of a source. `constants`: values of the names in __launch_bounds__ that other
// files define.
inline std::vector<HotKernel> hot_kernels(const std::string& source,
                                          std::map<std::string, std::int64_t> constants) {
  const std::regex constant("constexpr int (k\\w+) = (\\d+);");
  for (std::sregex_iterator it(source.begin(), source.end(), constant), end; it != end; ++it)
    constants[(*it)[1]] = std::stoll((*it)[2]);
  const std::regex kernel(
      "((?:// (?:hot|bytes|flops)[^\\n]*\\n)+)(?:template[^\\n]*\\n)?"
      "__global__ void __launch_bounds__\\((\\w+)(?:, \\d+)?\\)\\s+(\\w+)\\(");
  const std::regex hot(
      "// hot(?: <(\\w+)>)?: at least (\\d+) blocks? per SM"
      "(?:, with (\\d+) bytes of dynamic shared memory)?");
  const std::regex bytes("// bytes: (\\d+) of (\\d+) per element of \\w+");
  std::vector<HotKernel> kernels;
  for (std::sregex_iterator it(source.begin(), source.end(), kernel), end; it != end; ++it) {
    const std::string statements = (*it)[1];
    const auto threads = constants.find((*it)[2]);
    std::smatch traffic;
    const bool has_traffic = std::regex_search(statements, traffic, bytes);
    for (std::sregex_iterator at(statements.begin(), statements.end(), hot); at != end; ++at) {
      const std::smatch& match = *at;
      kernels.push_back({(*it)[3], match[1], threads == constants.end() ? 0 : threads->second,
                         std::stoll(match[2]), match[3].matched ? std::stoll(match[3]) : 0,
                         has_traffic ? std::stod(traffic[1]) : 0.0,
                         has_traffic ? std::stod(traffic[2]) : 0.0});
    }
  }
  return kernels;
}

// Lines of a source that begin a statement, understood or not.
inline std::int64_t num_hot_lines(const std::string& source) {
  const std::regex line("\\n// hot\\b");
  return std::distance(std::sregex_iterator(source.begin(), source.end(), line),
                       std::sregex_iterator());
}

// Blocks that fit on a multiprocessor at once. CUDA programming guide, table of technical
// specifications per compute capability; registers belong to the four quarters of a multiprocessor,
// and are given out to warps in units of 256.
inline std::int64_t blocks_per_sm(const KernelReport& report, std::int64_t threads,
                                  std::int64_t dynamic_shared_bytes) {
  constexpr std::int64_t kReserved = 1 << 10, kQuarters = 4, kWarps = 64, kBlocks = 32;
  const std::int64_t shared_total = (report.arch == "sm_80" ? 164 : 228) << 10;
  const std::int64_t warps = threads / 32;
  const std::int64_t registers_per_warp = (report.registers * 32 + 255) / 256 * 256;
  const std::int64_t by_registers = 16384 / registers_per_warp * kQuarters / warps;
  const std::int64_t by_shared =
      shared_total / (report.shared_bytes + dynamic_shared_bytes + kReserved);
  return std::min({by_registers, kWarps / warps, by_shared, kBlocks});
}

// Whether `mangled` is an instance of the kernel `name`: an Itanium name holds its length before
// it; integers among template arguments are written Li64E, and E ends the arguments.
inline bool is_instance(const std::string& mangled, const std::string& name,
                        const std::string& last_argument = "") {
  const std::size_t at = mangled.find(std::to_string(name.size()) + name);
  if (at == std::string::npos) return false;
  return last_argument.empty() || mangled.find("Li" + last_argument + "EE", at) < mangled.size();
}

// What is wrong with the kernels of a source, one line each.
inline std::vector<std::string> faults_of(const std::vector<HotKernel>& kernels,
                                          const std::vector<KernelReport>& reports) {
  std::vector<std::string> faults;
  std::map<std::string, bool> is_stated;  // by mangled name of instances of any of the kernels
  for (const HotKernel& kernel : kernels) {
    const std::string name = kernel.name + (kernel.last_argument.empty() ? "" : " <") +
                             kernel.last_argument + (kernel.last_argument.empty() ? "" : ">");
    if (kernel.threads == 0) {
      faults.push_back(name + ": unknown name in __launch_bounds__");
      continue;
    }
    if (kernel.bytes_needed <= 0.0 || kernel.bytes_moved < kernel.bytes_needed)
      faults.push_back(name + ": no `// bytes: MOVED of NEEDED per element of ...`");
    std::int64_t instances = 0;
    for (const KernelReport& report : reports) {
      if (!is_instance(report.mangled, kernel.name)) continue;
      const bool is_meant = is_instance(report.mangled, kernel.name, kernel.last_argument);
      is_stated[report.mangled] |= is_meant;
      if (!is_meant) continue;
      ++instances;
      const std::string place = name + ", " + report.mangled + " for " + report.arch + ": ";
      if (report.spill_bytes > 0)
        faults.push_back(place + std::to_string(report.spill_bytes) + " bytes spilled");
      const std::int64_t blocks =
          blocks_per_sm(report, kernel.threads, kernel.dynamic_shared_bytes);
      if (blocks < kernel.blocks)
        faults.push_back(place + std::to_string(blocks) + " blocks per SM, stated are " +
                         std::to_string(kernel.blocks) + "; " + std::to_string(report.registers) +
                         " registers, " + std::to_string(report.shared_bytes) +
                         " bytes of static shared memory");
    }
    if (instances == 0) faults.push_back(name + ": not compiled");
  }
  for (const auto& [mangled, stated] : is_stated)
    if (!stated) faults.push_back(mangled + ": its template argument is not among those stated");
  return faults;
}

}  // namespace openmoe::test
