// The order in which the emulated device runs blocks and threads.
#pragma once

#include "test/cuda_emulation/emulation.h"

namespace openmoe::test {

inline constexpr int kNumSchedules = 3;

inline void choose_schedule(int index) {
  cuda_emulation::set_seed(static_cast<unsigned>(index));
}

}  // namespace openmoe::test
