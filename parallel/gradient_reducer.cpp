#include "parallel/gradient_reducer.h"

#include <array>
#include <cmath>
#include <span>

#include "core/base/check.h"

namespace openmoe {
namespace {

void sum(const Tensor& grads, Communicator& group, DeviceCommunicator* device_group) {
  if (group.size() == 1) return;
  if (grads.device == Device::host) {
    group.all_reduce_sum(
        std::span<float>(grads.as<float>(), static_cast<std::size_t>(grads.num_elements())));
    return;
  }
  OPENMOE_CHECK(device_group != nullptr,
                "gradients of a device, and no device attached to the grid");
  device_group->all_reduce_sum(grads);
}

}  // namespace

GradientReducer::GradientReducer(Ops& ops, ParamTable& params, ProcessGrid& grid)
    : ops_(ops), params_(params), grid_(grid) {
  OPENMOE_CHECK(params.dense_grads(), "the parameter table was not allocated for training");
}

void GradientReducer::zero() {
  for (const Tensor& grads : {params_.dense_grads(), params_.expert_grads()})
    if (grads.num_elements() > 0) ops_.zero(grads);
}

void GradientReducer::reduce() {
  sum(params_.dense_grads(), grid_.data(), grid_.device_data());
  sum(params_.expert_grads(), grid_.replicas(), grid_.device_replicas());
}

double GradientReducer::grad_norm() {
  std::array<double, 1> expert_squares{0.0};
  if (params_.expert_grads().num_elements() > 0)
    expert_squares[0] = ops_.sum_of_squares(params_.expert_grads());
  grid_.expert().all_reduce_sum(std::span<double>(expert_squares));
  return std::sqrt(ops_.sum_of_squares(params_.dense_grads()) + expert_squares[0]);
}

}  // namespace openmoe
