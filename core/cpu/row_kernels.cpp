#include "core/cpu/row_kernels.h"

namespace openmoe::cpu {

const RowKernels& row_kernels(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::generic:
      return kRowKernelsGeneric;
    case CpuIsa::avx2:
      return kRowKernelsAvx2;
    case CpuIsa::avx512:
    case CpuIsa::avx512_bf16:
      return kRowKernelsAvx512;
  }
  return kRowKernelsGeneric;
}

}  // namespace openmoe::cpu
