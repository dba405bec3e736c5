#include "core/cpu/row_kernels_impl.h"

namespace openmoe::cpu {

constexpr RowKernels kRowKernelsAvx2 = make_row_kernels<32>();

}  // namespace openmoe::cpu
