#include "core/cpu/row_kernels_impl.h"

namespace openmoe::cpu {

constexpr RowKernels kRowKernelsAvx512 = make_row_kernels<64>();

}  // namespace openmoe::cpu
