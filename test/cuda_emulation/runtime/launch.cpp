// Launches: the limits of the hardware, the arguments, the order of blocks.
#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>

#include "cuda_runtime.h"
#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/fault_handler.h"
#include "test/cuda_emulation/runtime/launch.h"
#include "test/cuda_emulation/runtime/sanitizer.h"
#include "test/cuda_emulation/runtime/scheduler.h"
#include "test/cuda_emulation/runtime/streams.h"
#include "test/cuda_emulation/runtime/symbols.h"
#include "test/cuda_emulation/runtime/violation.h"

namespace cuda_emulation {
namespace {

constexpr std::size_t kDefaultSharedBytes = 48 << 10;
constexpr std::size_t kMostSharedBytes = 227 << 10;  // of any architecture
constexpr std::size_t kReservedSharedBytes = 1 << 10;
// The project is compiled for this and later ones (scripts/cmake/OpenmoeCuda.cmake).
constexpr int kOldestArch = 80;

cudaError_t check_image(const KernelSymbols& kernel) {
  if (hardware().arch >= kOldestArch) return cudaSuccess;
  return fail(cudaErrorNoKernelImageForDevice,
              text("kernel ", kernel.name, " on sm_", hardware().arch));
}

struct State {
  std::map<const void*, std::size_t> opted_in;  // kernel -> most dynamic shared memory
  std::int64_t launches = 0;
  std::int64_t blocks = 0;
};
State& state() {
  static State* instance = new State;
  return *instance;
}

// Copied arguments, and dynamic shared memory with a guard behind it. In the program's image, where
// kernels may read.
alignas(128) unsigned char g_parameters[kMaxParameterBytes + 256];
alignas(128) unsigned char g_dynamic_shared[kMostSharedBytes + 4096];
std::size_t g_dynamic_shared_bytes = 0;

constexpr unsigned char kPattern = 0xff;

std::string size_text(dim3 size) {
  return text("(", size.x, ", ", size.y, ", ", size.z, ")");
}

cudaError_t check_shape(const cudaLaunchConfig_t& config, const KernelSymbols& kernel) {
  const dim3 block = config.blockDim;
  const dim3 grid = config.gridDim;
  const auto bad = [&](const char* what) {
    return fail(cudaErrorInvalidConfiguration, text("kernel ", kernel.name, ": ", what, "; grid ",
                                                    size_text(grid), ", block ", size_text(block)));
  };
  if (block.x == 0 || block.y == 0 || block.z == 0) return bad("an empty block");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return bad("an empty grid");
  if (block.x > 1024 || block.y > 1024 || block.z > 64)
    return bad("a block may be 1024 x 1024 x 64");
  if (std::uint64_t{block.x} * block.y * block.z > 1024)
    return bad("a block may have 1024 threads");
  if (grid.x > 0x7fffffffu) return bad("grid.x may be 2^31 - 1");
  if (grid.y > 65535 || grid.z > 65535) return bad("grid.y and grid.z may be 65535");
  return cudaSuccess;
}

cudaError_t check_shared(const cudaLaunchConfig_t& config, const void* function,
                         const KernelSymbols& kernel) {
  const std::size_t bytes = config.dynamicSmemBytes;
  if (kernel.static_shared_bytes > kDefaultSharedBytes)
    violation(text("kernel ", kernel.name, " declares ", kernel.static_shared_bytes,
                   " bytes of static shared memory; the limit is ", kDefaultSharedBytes,
                   " (nvcc refuses it)"));
  const auto opted = state().opted_in.find(function);
  const std::size_t allowed = opted == state().opted_in.end()
                                  ? kDefaultSharedBytes - kernel.static_shared_bytes
                                  : opted->second;
  if (bytes <= allowed) return cudaSuccess;
  return fail(
      cudaErrorInvalidValue,
      text("kernel ", kernel.name, ": ", bytes, " bytes of dynamic shared memory (and ",
           kernel.static_shared_bytes, " static); allowed are ", allowed,
           opted == state().opted_in.end() ? " without cudaFuncAttributeMaxDynamicSharedMemorySize"
                                           : ""));
}

cudaError_t check_attributes(const cudaLaunchConfig_t& config) {
  for (unsigned int i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    const bool harmless =
        attribute.id == cudaLaunchAttributePriority ||
        (attribute.id == cudaLaunchAttributeCooperative && attribute.val.cooperative == 0);
    if (!harmless)
      return fail(cudaErrorNotSupported, text("launch attribute ", static_cast<int>(attribute.id)));
  }
  return cudaSuccess;
}

// Copies the arguments and moves every word that is a device address to the accessible mapping.
void take_arguments(const void* arguments, std::size_t bytes, int device, const char* kernel) {
  std::memcpy(g_parameters, arguments, bytes);
  for (std::size_t at = 0; at + sizeof(void*) <= bytes; at += sizeof(void*)) {
    void* p;
    std::memcpy(&p, g_parameters + at, sizeof p);
    if (!device_memory::contains(p)) continue;
    const Allocation* a = device_memory::around(p);
    if (a != nullptr && a->device != device)
      violation(
          text("kernel ", kernel, " on device ", device, " is given ", device_memory::describe(p)));
    p = device_memory::host_view(p);
    std::memcpy(g_parameters + at, &p, sizeof p);
  }
}

void fill_shared(const KernelSymbols& kernel) {
  for (const SharedVariable& variable : kernel.own)
    fill_variable(variable.address, kPattern, variable.bytes);
  for (const SharedVariable& variable : shared_of_device_functions())
    fill_variable(variable.address, kPattern, variable.bytes);
  std::memset(g_dynamic_shared, kPattern, g_dynamic_shared_bytes + 256);
}

// Writes behind the dynamic shared memory, found after the block.
void check_shared_guard(const KernelSymbols& kernel) {
  for (std::size_t i = 0; i < 256; ++i)
    if (g_dynamic_shared[g_dynamic_shared_bytes + i] != kPattern)
      violation(text("kernel ", kernel.name, " wrote ", i, " bytes behind its ",
                     g_dynamic_shared_bytes, " bytes of dynamic shared memory"));
}

// Blocks in an order that the seed decides: i -> (i * stride + offset) mod count.
void run_blocks(const Grid& grid, const KernelSymbols& kernel) {
  const std::uint64_t count = std::uint64_t{grid.grid_size.x} * grid.grid_size.y * grid.grid_size.z;
  std::uint64_t stride = 1;
  std::uint64_t offset = 0;
  if (seed() != 0) {
    offset = schedule_random() % count;
    stride = count > 1 ? 1 + schedule_random() % (count - 1) : 1;
    while (std::gcd(stride, count) != 1) ++stride;
  }
  std::uint64_t place = offset;
  for (std::uint64_t i = 0; i < count; ++i, place = (place + stride) % count) {
    const dim3& size = grid.grid_size;
    const auto yz = static_cast<unsigned int>(place / size.x);
    fill_shared(kernel);
    const std::string fault =
        run_block(grid, {static_cast<unsigned int>(place % size.x), yz % size.y, yz / size.y});
    protect_device_memory();
    if (!fault.empty()) violation(fault);
    check_shared_guard(kernel);
  }
  state().blocks += static_cast<std::int64_t>(count);
}

}  // namespace

std::size_t shared_limit() {
  // CUDA programming guide, technical specifications per compute capability.
  const int arch = hardware().arch;
  if (arch == 80 || arch == 87) return std::size_t{163} << 10;
  if (arch < 90 || arch >= 120) return std::size_t{99} << 10;
  return kMostSharedBytes;
}

bool in_dynamic_shared(std::uintptr_t address, std::size_t bytes, bool* inside) {
  const std::uintptr_t at = address - reinterpret_cast<std::uintptr_t>(g_dynamic_shared);
  if (at >= sizeof g_dynamic_shared) return false;
  *inside = at + bytes <= g_dynamic_shared_bytes;
  return true;
}

std::size_t dynamic_shared_bytes() {
  return g_dynamic_shared_bytes;
}

void* dynamic_shared_memory() {
  return g_dynamic_shared;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* function, const void* arguments,
                   std::size_t bytes, void (*invoke)(const void*)) {
  const std::lock_guard lock(api_mutex());
  if (in_kernel()) violation("a kernel launched from a kernel");
  const KernelSymbols& kernel = symbols_of(function);
  if (const cudaError_t error = check_image(kernel); error != cudaSuccess) return error;
  if (const cudaError_t error = check_shape(config, kernel); error != cudaSuccess) return error;
  if (const cudaError_t error = check_shared(config, function, kernel); error != cudaSuccess)
    return error;
  if (const cudaError_t error = check_attributes(config); error != cudaSuccess) return error;
  CUstream_st& stream = stream_of(config.stream, "cudaLaunchKernelEx");
  Operation operation(stream, kernel.name);
  take_arguments(arguments, bytes, stream.device, kernel.name);
  g_dynamic_shared_bytes = config.dynamicSmemBytes;
  Grid grid;
  grid.kernel_name = kernel.name;
  grid.grid_size = config.gridDim;
  grid.block_size = config.blockDim;
  grid.invoke = invoke;
  grid.arguments = g_parameters;
  install_fault_handler();
  begin_launch();
  ++state().launches;
  run_blocks(grid, kernel);
  return cudaSuccess;
}

cudaError_t set_function_attribute(const void* function, cudaFuncAttribute attribute, int value) {
  const std::lock_guard lock(api_mutex());
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
    return value >= -1 && value <= 100 ? cudaSuccess
                                       : fail(cudaErrorInvalidValue, "carveout in percent");
  const KernelSymbols& kernel = symbols_of(function);
  if (value < 0 || static_cast<std::size_t>(value) + kernel.static_shared_bytes > shared_limit())
    return fail(cudaErrorInvalidValue,
                text("kernel ", kernel.name, ": ", value, " bytes of dynamic shared memory (and ",
                     kernel.static_shared_bytes, " static); sm_", hardware().arch, " has ",
                     shared_limit()));
  state().opted_in[function] = static_cast<std::size_t>(value);
  return cudaSuccess;
}

cudaError_t function_attributes(cudaFuncAttributes* attributes, const void* function) {
  const std::lock_guard lock(api_mutex());
  const KernelSymbols& kernel = symbols_of(function);
  if (const cudaError_t error = check_image(kernel); error != cudaSuccess) return error;
  *attributes = cudaFuncAttributes{};
  attributes->sharedSizeBytes = kernel.static_shared_bytes;
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->binaryVersion = hardware().arch;
  attributes->ptxVersion = hardware().arch;
  const auto opted = state().opted_in.find(function);
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(
      opted == state().opted_in.end() ? kDefaultSharedBytes - kernel.static_shared_bytes
                                      : opted->second);
  return cudaSuccess;
}

cudaError_t max_active_blocks(int* blocks, const void* function, int block_size,
                              std::size_t shared_bytes) {
  const std::lock_guard lock(api_mutex());
  if (block_size <= 0 || block_size > 1024)
    return fail(cudaErrorInvalidValue, text("block of ", block_size, " threads"));
  const std::size_t each =
      symbols_of(function).static_shared_bytes + shared_bytes + kReservedSharedBytes;
  const std::size_t by_shared = (shared_limit() + kReservedSharedBytes) / each;
  const std::size_t by_threads = 2048 / static_cast<std::size_t>((block_size + 31) / 32 * 32);
  *blocks = static_cast<int>(std::min<std::size_t>({by_shared, by_threads, 32}));
  return cudaSuccess;
}

Counters counters() {
  const std::lock_guard lock(api_mutex());
  Counters all;
  all.launches = state().launches;
  all.blocks = state().blocks;
  all.switches = num_switches();
  all.allocations = device_memory::num_allocations();
  all.live_bytes = static_cast<std::int64_t>(device_memory::live_bytes());
  all.host_waits = num_host_waits();
  return all;
}

}  // namespace cuda_emulation
