// device_ops.h for an executable without the CUDA backend: it has no device, and says so.
#include "cuda/device_ops.h"

#include "core/base/error.h"

namespace openmoe {
namespace {

[[noreturn]] void refuse() {
  throw UserError(
      "--device cuda: this openmoe was built without CUDA; configure with -DOPENMOE_CUDA=ON on a "
      "machine with nvcc, "
      "or use --device cpu");
}

}  // namespace

bool has_cuda_backend() {
  return false;
}

int num_cuda_devices() {
  return 0;
}

std::unique_ptr<Ops> make_cuda_ops(int) {
  refuse();
}

std::unique_ptr<RoutingPlanner> make_cuda_planner(Ops&, const ExchangeShape&, std::int64_t) {
  refuse();
}

std::unique_ptr<Communicator> make_nccl_communicator(Ops&, Communicator&) {
  refuse();
}

std::string describe_cuda_device(int) {
  refuse();
}

std::string cuda_device_id(int) {
  refuse();
}

CudaDevice current_cuda_device() {
  refuse();
}

std::vector<std::pair<std::string, std::string>> cuda_library_versions() {
  return {};
}

}  // namespace openmoe
