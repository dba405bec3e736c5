// Choice of code by the storage type of a tensor.
#pragma once

#include "core/base/check.h"
#include "core/base/dtype.h"

namespace openmoe::cpu {

// body(float{}) or body(BFloat16{}): `using S = decltype(zero)` is the storage type.
template <class Body>
void with_storage(DType dtype, const Body& body) {
  OPENMOE_CHECK(dtype == DType::f32 || dtype == DType::bf16, "no kernels for ", name_of(dtype));
  if (dtype == DType::bf16)
    body(BFloat16{});
  else
    body(float{});
}

}  // namespace openmoe::cpu
