// Arguments that all attention kernels share.
#pragma once

#include <cstdint>

namespace openmoe::cuda {

struct AttentionShape {
  std::int64_t B, T, H, Dh;
  float scale;
  bool vectors;  // rows of heads can be moved four elements at a time
};

}  // namespace openmoe::cuda
