// Which instruction set the CPU kernels use. Detected by CPUID once; the environment variable
// OPENMOE_CPU_ISA forces another one that this CPU has, so that every variant can be tested on one
// machine.
#pragma once

#include <cstdint>
#include <vector>

namespace openmoe::cpu {

// In rising order: each includes those before it. avx512 stands for F, BW, DQ and VL together.
enum class CpuIsa : std::uint8_t { generic, avx2, avx512, avx512_bf16 };

const char* name_of(CpuIsa isa);

// The best instruction set of this machine, whatever the environment says.
CpuIsa best_cpu_isa();
// All that this machine can run, in rising order.
std::vector<CpuIsa> available_cpu_isas();

// `requested` by name, or `best` when it is null or empty. Throws UserError for an unknown name and
// for one beyond `best`.
CpuIsa choose_cpu_isa(const char* requested, CpuIsa best);

// The one in use: choose_cpu_isa(OPENMOE_CPU_ISA, best_cpu_isa()), read at the first call. Throws
// UserError.
CpuIsa cpu_isa();

// Forces the instruction set for the lifetime of the object; for tests and benchmarks, which run
// all variants in one process. Set and destroy it on one thread while no kernel runs.
class ScopedCpuIsa {
 public:
  explicit ScopedCpuIsa(CpuIsa isa);
  ~ScopedCpuIsa();
  ScopedCpuIsa(const ScopedCpuIsa&) = delete;
  ScopedCpuIsa& operator=(const ScopedCpuIsa&) = delete;

 private:
  int previous_;
};

}  // namespace openmoe::cpu
