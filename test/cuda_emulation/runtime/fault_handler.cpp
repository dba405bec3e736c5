#include "test/cuda_emulation/runtime/fault_handler.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "test/cuda_emulation/runtime/access.h"
#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/scheduler.h"
#include "test/cuda_emulation/runtime/violation.h"

namespace cuda_emulation {
namespace {

constexpr std::size_t kHandlerStackBytes = 256 << 10;

struct sigaction g_before;
bool g_open = false;

void explain(const std::string& message) {
  const std::string line = "emulated CUDA device: " + message + "\n";
  // Nothing more can be done when standard error is gone.
  if (write(STDERR_FILENO, line.data(), line.size()) < 0) return;
}

void on_fault(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  const bool first_mapping = address - g_access.base < kSpaceBytes;
  if (first_mapping && in_kernel() && !g_open) {
    g_open = true;
    device_memory::set_first_mapping_accessible(true);
    return;
  }
  if (first_mapping)
    explain(text("host code follows a device pointer: ", device_memory::describe(info->si_addr),
                 "; copy to host memory first"));
  else if (in_kernel() && in_guard_of_running_stack(address))
    explain(describe_thread() + ": more than 256 KiB of local variables");
  // The access faults again, under the handler that was there before.
  sigaction(SIGSEGV, &g_before, nullptr);
}

}  // namespace

void install_fault_handler() {
  struct sigaction now {};
  sigaction(SIGSEGV, nullptr, &now);
  if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_fault) return;
  g_before = now;
  // Fibers' stacks may be the cause of the fault: the handler has a stack of its own.
  static char* const stack = static_cast<char*>(std::malloc(kHandlerStackBytes));
  stack_t alternate{};
  alternate.ss_sp = stack;
  alternate.ss_size = kHandlerStackBytes;
  sigaltstack(&alternate, nullptr);
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGSEGV, &action, nullptr);
}

void protect_device_memory() {
  if (!g_open) return;
  g_open = false;
  device_memory::set_first_mapping_accessible(false);
}

}  // namespace cuda_emulation
