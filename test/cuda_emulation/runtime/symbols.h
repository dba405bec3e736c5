// Names of kernels and the static __shared__ variables of this program, from its symbol table.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace cuda_emulation {

struct SharedVariable {
  void* address = nullptr;
  std::size_t bytes = 0;
  std::string owner;  // mangled function that declares it, without the leading _Z
  std::string name;
};

struct KernelSymbols {
  const char* name = nullptr;           // readable
  std::size_t static_shared_bytes = 0;  // variables declared in the kernel itself
  // Variables to refill before a block: the kernel's own, and those of functions that are not known
  // to be kernels.
  std::vector<SharedVariable> own;
};

// Of the function at this address; kept after the first call.
const KernelSymbols& symbols_of(const void* kernel);
// Variables of functions never launched as kernels so far: device functions that kernels call.
const std::vector<SharedVariable>& shared_of_device_functions();

// True for addresses inside the program's own image: its constants, __device__ and __shared__
// variables.
bool in_program_image(std::uintptr_t address);

}  // namespace cuda_emulation
