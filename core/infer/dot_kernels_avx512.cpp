#include "core/infer/dot_kernels_body.h"

namespace openmoe::infer {

const DotKernels& dot_kernels_avx512() {
  static constexpr DotKernels kTable = DotBody<64>::table();
  return kTable;
}

}  // namespace openmoe::infer
