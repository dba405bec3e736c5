// What is measured and said of a device: its time, its name, its libraries.
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <nccl.h>

#include "core/base/check.h"
#include "core/base/error.h"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/device_ops.h"

namespace openmoe {
namespace {

// Places are events on the stream of the ops, to about half a microsecond; they are kept for the
// next round.
class EventClock final : public OpClock {
 public:
  explicit EventClock(CudaOps& ops) : ops_(ops) {}
  ~EventClock() override {
    cudaStreamSynchronize(ops_.stream());
    for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  EventClock(const EventClock&) = delete;
  EventClock& operator=(const EventClock&) = delete;

  std::int64_t mark() override {
    if (used_ == events_.size()) {
      cudaEvent_t event = nullptr;
      note(cudaEventCreate(&event));
      events_.push_back(event);
    }
    note(cudaEventRecord(events_[used_], ops_.stream()));
    return static_cast<std::int64_t>(used_++);
  }

  double seconds(std::int64_t from, std::int64_t to) override {
    OPENMOE_CHECK(0 <= from && from <= to && static_cast<std::size_t>(to) < used_, "from place ",
                  from, " to ", to, " of ", used_);
    const cudaEvent_t first = events_[static_cast<std::size_t>(from)],
                      last = events_[static_cast<std::size_t>(to)];
    float milliseconds = 0.0f;
    OPENMOE_CUDA(fault_);
    OPENMOE_CUDA(cudaEventSynchronize(last));
    if (from == to) return 0.0;
    OPENMOE_CUDA(cudaEventElapsedTime(&milliseconds, first, last));
    return 1e-3 * static_cast<double>(milliseconds);
  }

  void forget() override { used_ = 0; }

 private:
  void note(cudaError_t result) {
    if (fault_ == cudaSuccess) fault_ = result;
  }

  CudaOps& ops_;
  cudaError_t fault_ = cudaSuccess;  // the first of a mark
  std::vector<cudaEvent_t> events_;
  std::size_t used_ = 0;
};

// 22809 is 2.28.9 where the parts are two digits each, as all but CUDA's own are.
std::string version_text(std::int64_t number) {
  return concat(number / 10000, ".", number / 100 % 100, ".", number % 100);
}

std::string cuda_version_text(int number) {
  return concat(number / 1000, ".", number % 1000 / 10);
}

}  // namespace

std::unique_ptr<OpClock> CudaOps::make_clock() {
  return std::make_unique<EventClock>(*this);
}

CudaDevice current_cuda_device() {
  int index = 0;
  cudaDeviceProp properties{};
  OPENMOE_CUDA(cudaGetDevice(&index));
  OPENMOE_CUDA(cudaGetDeviceProperties(&properties, index));
  return {properties.name, properties.major * 10 + properties.minor,
          static_cast<std::int64_t>(properties.totalGlobalMem), properties.multiProcessorCount};
}

std::vector<std::pair<std::string, std::string>> cuda_library_versions() {
  int driver = 0, runtime = 0;
  OPENMOE_CUDA(cudaDriverGetVersion(&driver));
  OPENMOE_CUDA(cudaRuntimeGetVersion(&runtime));
  const auto unless_missing = [](auto&& version) {
    try {
      return version_text(version());
    } catch (const UserError&) {  // of the function's library
      return std::string("not found");
    }
  };
  return {
      {"driver", driver == 0 ? "not found" : cuda_version_text(driver)},
      {"runtime", cuda_version_text(runtime)},
      {"cuBLASLt", unless_missing([] { return static_cast<std::int64_t>(cublasLtGetVersion()); })},
      {"NCCL", unless_missing([] {
         int nccl = 0;
         OPENMOE_CHECK(ncclGetVersion(&nccl) == ncclSuccess, "ncclGetVersion");
         return std::int64_t{nccl};
       })}};
}

}  // namespace openmoe
