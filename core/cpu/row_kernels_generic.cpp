#include "core/cpu/row_kernels_impl.h"

namespace openmoe::cpu {

constexpr RowKernels kRowKernelsGeneric = make_row_kernels<16>();

}  // namespace openmoe::cpu
