#include "apps/device_peaks.h"
#include "test/support/catch.h"

using namespace openmoe;

TEST_CASE("peaks of devices by name, and what the command line puts in their place", "[apps]") {
  // Names as drivers give them; the narrower entry of the table must win.
  CHECK(data_sheet_peaks("NVIDIA H100 80GB HBM3").memory == 3.35e12);
  CHECK(data_sheet_peaks("NVIDIA H100 PCIe").memory == 2.0e12);
  CHECK(data_sheet_peaks("NVIDIA H200").memory == 4.8e12);
  CHECK(data_sheet_peaks("NVIDIA H200 NVL").bf16 == 835e12);
  CHECK(data_sheet_peaks("NVIDIA A100-SXM4-80GB").memory == 2.039e12);
  CHECK(data_sheet_peaks("NVIDIA A100-SXM4-40GB").memory == 1.555e12);
  CHECK(data_sheet_peaks("NVIDIA A100 80GB PCIe").products(DType::bf16) == 312e12);
  CHECK(data_sheet_peaks("NVIDIA A100 80GB PCIe").products(DType::f32) == 19.5e12);
  CHECK_FALSE(data_sheet_peaks("Emulated CUDA device").is_complete());
  CHECK_FALSE(data_sheet_peaks("NVIDIA GH200 480GB").is_complete());  // memory of its own

  const Peaks given{0.0, 1e15, 0.0, ""};
  const Peaks peaks = override_peaks(data_sheet_peaks("NVIDIA H100 PCIe"), given);
  CHECK(peaks.bf16 == 1e15);
  CHECK(peaks.f32 == 51e12);
  CHECK(peaks.source == "NVIDIA's data sheet, H100 PCIe; --peak-bf16");
  CHECK_FALSE(override_peaks({}, given).is_complete());
}
