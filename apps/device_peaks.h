// Peaks: what a device can do at most, which speeds are compared with.
#pragma once

#include <string>

#include "core/base/dtype.h"

namespace openmoe {

struct Peaks {
  double f32 = 0.0;     // FLOP/s of products of f32 (no TF32: the program does not use it)
  double bf16 = 0.0;    // FLOP/s of products of bf16, dense
  double memory = 0.0;  // bytes/s
  std::string source;   // where the numbers are from

  double products(DType operands) const { return operands == DType::bf16 ? bf16 : f32; }
  bool is_complete() const { return f32 > 0.0 && bf16 > 0.0 && memory > 0.0; }
};

// Of a device with this name, by NVIDIA's data sheets; zeros where it is none of those known.
Peaks data_sheet_peaks(const std::string& device_name);

// `peaks` with what of `given` is not 0 in its place.
Peaks override_peaks(Peaks peaks, const Peaks& given);

}  // namespace openmoe
