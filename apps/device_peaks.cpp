#include "apps/device_peaks.h"

namespace openmoe {
namespace {

struct DataSheet {
  const char* name;  // what is unique in the name that the driver gives
  double f32, bf16, memory;
};

// NVIDIA's data sheets of the A100, H100 and H200; bf16 without sparsity. The first that fits
// counts. A GH200, whose name ends like one of them, has memory of its own and is none.
constexpr DataSheet kDataSheets[] = {{"NVIDIA H200 NVL", 60e12, 835e12, 4.8e12},
                                     {"NVIDIA H200", 67e12, 989.4e12, 4.8e12},
                                     {"H100 PCIe", 51e12, 756e12, 2.0e12},
                                     {"H100 NVL", 60e12, 835e12, 3.9e12},
                                     {"H100", 67e12, 989.4e12, 3.35e12},
                                     {"A100-SXM4-80GB", 19.5e12, 312e12, 2.039e12},
                                     {"A100 80GB PCIe", 19.5e12, 312e12, 1.935e12},
                                     {"A100", 19.5e12, 312e12, 1.555e12}};

}  // namespace

Peaks data_sheet_peaks(const std::string& device_name) {
  for (const DataSheet& sheet : kDataSheets)
    if (device_name.find(sheet.name) != std::string::npos)
      return {sheet.f32, sheet.bf16, sheet.memory,
              std::string("NVIDIA's data sheet, ") + sheet.name};
  return {};
}

Peaks override_peaks(Peaks peaks, const Peaks& given) {
  const auto take = [&](double Peaks::*member, const char* option) {
    if (given.*member <= 0.0) return;
    peaks.*member = given.*member;
    peaks.source += (peaks.source.empty() ? "" : "; ") + std::string(option);
  };
  take(&Peaks::f32, "--peak-f32");
  take(&Peaks::bf16, "--peak-bf16");
  take(&Peaks::memory, "--peak-memory");
  return peaks;
}

}  // namespace openmoe
