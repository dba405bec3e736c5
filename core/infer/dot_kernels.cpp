#include "core/infer/dot_kernels.h"

#include "core/cpu/cpu_features.h"

namespace openmoe::infer {

const DotKernels& dot_kernels() {
  switch (cpu::cpu_isa()) {
    case cpu::CpuIsa::generic:
      return dot_kernels_generic();
    case cpu::CpuIsa::avx2:
      return dot_kernels_avx2();
    case cpu::CpuIsa::avx512:
    case cpu::CpuIsa::avx512_bf16:
      return dot_kernels_avx512();
  }
  return dot_kernels_generic();
}

}  // namespace openmoe::infer
