#include "parallel/gradient_reducer.h"

#include <cmath>
#include <span>
#include <utility>

#include "core/base/check.h"

namespace openmoe {
namespace {

void sum_over(const Tensor& grads, Communicator& group, DeviceCommunicator* device_group) {
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

void GradientReducer::sum(const Tensor& grads, Sharding sharding) {
  switch (sharding) {
    case Sharding::replicated:  // a device has no tensor group yet: there all ranks are data ranks
      return sum_over(grads, grid_.tp() > 1 ? grid_.world() : grid_.data(), grid_.device_data());
    case Sharding::tensor:
      return sum_over(grads, grid_.data(), grid_.device_data());
    case Sharding::expert:
      return sum_over(grads, grid_.replicas(), grid_.device_replicas());
  }
}

void GradientReducer::reduce() {
  for (const Sharding sharding : {Sharding::tensor, Sharding::replicated, Sharding::expert})
    sum(params_.grads(sharding), sharding);
}

void GradientReducer::reduce(Param& param) {
  sum(param.grad, param.sharding);
}

double GradientReducer::add_squares(const Param& param) {
  const double squares = ops_.sum_of_squares(param.grad);
  squares_[static_cast<std::size_t>(param.sharding)] += squares;
  return squares;
}

double GradientReducer::norm_of_added() {
  const auto added = std::exchange(squares_, {});
  const auto of = [&](Sharding sharding) { return added[static_cast<std::size_t>(sharding)]; };
  double shared[] = {of(Sharding::tensor), of(Sharding::expert)};
  grid_.tensor().all_reduce_sum(std::span<double>(shared));
  grid_.expert().all_reduce_sum(std::span<double>(&shared[1], 1));
  return std::sqrt(of(Sharding::replicated) + shared[0] + shared[1]);
}

double GradientReducer::grad_norm() {
  for (const Param& param : params_.params()) add_squares(param);
  return norm_of_added();
}

}  // namespace openmoe
