// openmoe info: what this binary was built with and what it finds on this machine.
#include <sys/utsname.h>

#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "apps/command.h"
#include "apps/threads.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/cpu/cpu_features.h"
#include "cuda/device_ops.h"
#include "data/library_versions.h"
#include "parallel/job.h"

namespace openmoe {
namespace {

using Json = nlohmann::ordered_json;

// The rest of the first line of a file that starts with `key`, without colon and blanks; "" when
// there is none.
std::string value_in_file(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t begin = line.find_first_not_of(" \t:", key.size());
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

std::int64_t kilobytes_in_meminfo(const std::string& key) {
  const std::string text = value_in_file("/proc/meminfo", key);
  return text.empty() ? 0 : std::stoll(text);
}

Json collect(const CommandContext& context) {
  Json info;
  info["version"] = OPENMOE_VERSION;
#ifdef __clang__
  info["compiler"] = std::string(__VERSION__);
#else
  info["compiler"] = std::string("GCC ") + __VERSION__;
#endif
  info["build_type"] = OPENMOE_BUILD_TYPE;
  info["MPI"] = mpi_library_version();
  for (const auto& [library, version] : data_library_versions()) info[library] = version;
  info["CUDA"] = has_cuda_backend() ? concat("built, ", num_cuda_devices(), " devices here")
                                    : std::string("not built");
  for (const auto& [library, version] : cuda_library_versions()) info["CUDA " + library] = version;
  utsname system{};
  uname(&system);
  info["system"] = std::string(system.sysname) + " " + system.release + " " + system.machine;
  info["host"] = system.nodename;
  info["cpu"] = value_in_file("/proc/cpuinfo", "model name");
  info["cpu_kernels"] = cpu::name_of(cpu::cpu_isa());
  info["cores"] = available_cores();
  info["ranks"] = context.mpi.world_size();
  info["threads_per_rank"] = context.num_threads;
  info["memory_bytes"] = kilobytes_in_meminfo("MemTotal") * 1024;
  info["memory_available_bytes"] = kilobytes_in_meminfo("MemAvailable") * 1024;
  info["transparent_huge_pages"] = value_in_file("/sys/kernel/mm/transparent_hugepage/enabled", "");
  return info;
}

int print_info(const CommandContext& context, bool as_json) {
  if (context.mpi.world_rank() != 0) return kExitSuccess;
  const Json info = collect(context);
  if (as_json) {
    std::cout << info.dump(2) << "\n";
    return kExitSuccess;
  }
  for (const auto& item : info.items()) {
    const std::string value =
        item.value().is_string() ? item.value().get<std::string>() : item.value().dump();
    std::cout << item.key() << std::string(26 - std::min<std::size_t>(25, item.key().size()), ' ')
              << value << "\n";
  }
  return kExitSuccess;
}

}  // namespace

void register_info(CLI::App& app, CommandContext& context) {
  CLI::App* command =
      app.add_subcommand("info", "what this binary was built with and what it finds here");
  auto as_json = std::make_shared<bool>(false);
  command->add_flag("--json", *as_json, "print one JSON object");
  command->callback([&context, as_json] {
    context.run = [&context, as_json] { return print_info(context, *as_json); };
  });
}

}  // namespace openmoe
