#include "core/train/adafactor.h"

#include <algorithm>
#include <cmath>

namespace openmoe {

SharedMatrix shared_matrix(const Param& param, TensorGroup& tensor) {
  const Shape whole = Param::matrices_of(param.global_shape);
  const bool by_columns = param.tensor_slice.axis == param.global_shape.rank - 1;
  return {.axis = by_columns ? SharedMatrix::Axis::columns : SharedMatrix::Axis::rows,
          .num_elements = whole[1] * whole[2],
          .sum = [&tensor](std::span<double> values) { tensor.sum(values); }};
}

double learning_rate_at(const OptimizerConfig& config, std::int64_t step) {
  const auto warmup = static_cast<double>(config.warmup_steps);
  return config.peak_learning_rate * std::sqrt(warmup) /
         std::sqrt(std::max(static_cast<double>(step), warmup));
}

void adafactor_update(Ops& ops, Param& param, const OptimizerConfig& config, std::int64_t step,
                      const SharedMatrix* shared) {
  if (!config.routers_learn(step) && param.name.ends_with("mlp.gate_weight")) return;
  AdafactorScalars scalars;
  scalars.learning_rate = static_cast<float>(learning_rate_at(config, step));
  scalars.decay =
      static_cast<float>(1.0 - std::pow(static_cast<double>(step) + 1.0, -config.decay_rate));
  scalars.clip_threshold = static_cast<float>(config.clip_threshold);
  scalars.epsilon_square = static_cast<float>(config.epsilon_square);
  scalars.epsilon_scale = static_cast<float>(config.epsilon_scale);
  if (param.factored) {
    const Shape matrices = param.as_matrices();
    const Tensor rounded = param.rounded();
    ops.adafactor_factored(param.value.reshaped(matrices), param.stat_row, param.stat_col,
                           param.grad.reshaped(matrices), scalars, shared,
                           rounded ? rounded.reshaped(matrices) : Tensor{});
    return;
  }
  ops.adafactor_full(param.value, param.stat_row, param.grad, scalars, shared);
  param.round_operand(ops);
}

void adafactor_update(Ops& ops, TensorGroup& tensor, Param& param, const OptimizerConfig& config,
                      std::int64_t step) {
  const SharedMatrix shared = shared_matrix(param, tensor);
  adafactor_update(ops, param, config, step, param.tensor_slice.axis < 0 ? nullptr : &shared);
}

void adafactor_step(Ops& ops, TensorGroup& tensor, ParamTable& params,
                    const OptimizerConfig& config, std::int64_t step) {
  ops.enter("optimizer");
  for (Param& param : params.params()) adafactor_update(ops, tensor, param, config, step);
}

}  // namespace openmoe
