// Memory faults (SIGSEGV) that the emulation can explain.
#pragma once

namespace cuda_emulation {

// Explains a host program that follows a device pointer, and a kernel that overflows its stack;
// then lets the signal do what it did before. Kernels that read device addresses from memory go on
// with both mappings open.
void install_fault_handler();
// Closes the first mapping again if the handler had opened it.
void protect_device_memory();

}  // namespace cuda_emulation
