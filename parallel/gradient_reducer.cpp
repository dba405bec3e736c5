#include "parallel/gradient_reducer.h"

#include <cmath>
#include <span>
#include <utility>

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
  OPENMOE_CHECK(params.params().front().grad, "the parameter table was not allocated for training");
}

void GradientReducer::reduce() {
  sum(params_.dense_grads(), grid_.data(), grid_.device_data());
  sum(params_.expert_grads(), grid_.replicas(), grid_.device_replicas());
}

void GradientReducer::reduce(Param& param) {
  if (param.sharding == Sharding::expert)
    sum(param.grad, grid_.replicas(), grid_.device_replicas());
  else
    sum(param.grad, grid_.data(), grid_.device_data());
}

double GradientReducer::add_squares(const Param& param) {
  const double squares = ops_.sum_of_squares(param.grad);
  (param.sharding == Sharding::expert ? expert_squares_ : dense_squares_) += squares;
  return squares;
}

double GradientReducer::norm_of_added() {
  double expert_squares = std::exchange(expert_squares_, 0.0);
  grid_.expert().all_reduce_sum(std::span<double>(&expert_squares, 1));
  return std::sqrt(std::exchange(dense_squares_, 0.0) + expert_squares);
}

double GradientReducer::grad_norm() {
  for (const Param& param : params_.params()) add_squares(param);
  return norm_of_added();
}

}  // namespace openmoe
