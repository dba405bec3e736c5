#include "core/cpu/kernels.h"

namespace openmoe::cpu {

#if defined(__x86_64__)
const CpuKernels& kernels_for(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::generic:
      return kernels_generic();
    case CpuIsa::avx2:
      return kernels_avx2();
    case CpuIsa::avx512:
      return kernels_avx512();
    case CpuIsa::avx512_bf16:
      return kernels_avx512_bf16();
  }
  return kernels_generic();
}
#else
const CpuKernels& kernels_for(CpuIsa) {
  return kernels_generic();
}
#endif

}  // namespace openmoe::cpu
