// The arithmetic peak of this machine at this moment: what speeds are measured against. Clocks
// drift and virtual cores come and go, so a share of peak means something only when the peak was
// measured right beside the sample.
#pragma once

namespace openmoe::cpu {

// f32 FMA rate of all OpenMP threads together in FLOP/s, from a loop over registers of about
// `seconds` with the widest vectors that cpu_isa() allows.
double measure_peak_flops(double seconds);

}  // namespace openmoe::cpu
