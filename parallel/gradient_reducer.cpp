#include "parallel/gradient_reducer.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "core/base/check.h"

namespace openmoe {

double total_norm(const std::array<double, kShardings.size()>& squares, ProcessGrid& grid) {
  const auto of = [&](Sharding sharding) { return squares[static_cast<std::size_t>(sharding)]; };
  double shared[] = {of(Sharding::tensor), of(Sharding::expert)};
  grid.tensor().all_reduce_sum(std::span<double>(shared));
  grid.expert().all_reduce_sum(std::span<double>(&shared[1], 1));
  return std::sqrt(of(Sharding::replicated) + shared[0] + shared[1]);
}

GradientReducer::GradientReducer(Ops& ops, ParamTable& params, ProcessGrid& grid,
                                 std::int64_t bucket_bytes)
    : ops_(ops), params_(params), grid_(grid) {
  OPENMOE_CHECK(params.params().front().grad, "the parameter table was not allocated for training");
  if (bucket_bytes > 0) make_buckets(bucket_bytes);
  for (const Param& param : params_.params()) grads_.push_back(param.grad);
  squares_of_grads_.resize(grads_.size());
}

void GradientReducer::sum(const Tensor& grads, Sharding sharding) {
  Communicator& holders = grid_.holders(sharding);
  if (holders.size() > 1)
    holders.all_reduce_sum(
        std::span<float>(grads.as<float>(), static_cast<std::size_t>(grads.num_elements())));
}

void GradientReducer::reduce() {
  for (const Sharding sharding : kShardings) sum(params_.grads(sharding), sharding);
}

// From the last parameter of a kind to the first, as the backward pass completes them.
void GradientReducer::make_buckets(std::int64_t bytes) {
  for (const Sharding sharding : kShardings) {
    if (grid_.holders(sharding).size() == 1 || params_.grads(sharding).num_elements() == 0)
      continue;
    bool is_open = false;
    for (auto param = params_.params().rbegin(); param != params_.params().rend(); ++param) {
      if (param->sharding != sharding) continue;
      float* const begin = param->grad.as<float>();
      if (!is_open) buckets_.push_back({sharding, begin, begin + param->grad.num_elements(), 0, 0});
      Bucket& bucket = buckets_.back();
      bucket.begin = begin;
      bucket.elements += param->grad.num_elements();
      bucket.remaining = bucket.elements;
      is_open = (bucket.end - bucket.begin) * size_of(DType::f32) < bytes;
    }
  }
}

void GradientReducer::complete(const Param& param) {
  const float* const at = param.grad.as<float>();
  const auto bucket = std::find_if(buckets_.begin(), buckets_.end(), [&](const Bucket& b) {
    return b.sharding == param.sharding && b.begin <= at && at < b.end;
  });
  if (bucket == buckets_.end()) return;  // nobody to add up with, or an empty slice at the end
  bucket->remaining -= param.grad.num_elements();
  OPENMOE_CHECK(bucket->remaining >= 0, param.name, " is complete twice");
  if (bucket->remaining == 0)
    grid_.holders(param.sharding).start_all_reduce_sum({bucket->begin, bucket->end});
  for (const Sharding sharding : kShardings) grid_.holders(sharding).advance();
}

void GradientReducer::finish() {
  for (const Sharding sharding : kShardings) grid_.holders(sharding).wait_for_sums();
  for (Bucket& bucket : buckets_) {
    OPENMOE_CHECK(bucket.remaining == 0, bucket.remaining, " gradients of a bucket are missing");
    bucket.remaining = bucket.elements;
  }
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
  return total_norm(std::exchange(squares_, {}), grid_);
}

double GradientReducer::grad_norm() {
  ops_.sums_of_squares(squares_of_grads_, grads_);
  for (std::size_t i = 0; i < grads_.size(); ++i)
    squares_[static_cast<std::size_t>(params_.params()[i].sharding)] += squares_of_grads_[i];
  return norm_of_added();
}

}  // namespace openmoe
