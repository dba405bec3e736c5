#include "core/infer/dot_kernels_body.h"

namespace openmoe::infer {

const DotKernels& dot_kernels_generic() {
  static constexpr DotKernels kTable = DotBody<16>::table();
  return kTable;
}

}  // namespace openmoe::infer
