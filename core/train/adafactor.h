// The optimizer step: Adafactor without momentum (Shazeer and Stern 2018) as t5x runs it, and its
// learning-rate schedule.
//   factored:   r = b r + (1-b) mean_cols(g^2 + eps1), c = b c + (1-b) mean_rows(g^2 + eps1)
//               u = g * (r / mean(r))^(-1/2) * c^(-1/2)
//   unfactored: v = b v + (1-b)(g^2 + eps1), u = g / sqrt(v)
//   both:       u = u / max(1, RMS(u) / clip),  w = w - lr * max(RMS(w), eps2) * u,  b = 1 -
//   (t+1)^(-decay_rate)
// Expert stacks (E, in, out) are E independent matrices. RMS(w) is of the value before the update.
#pragma once

#include <cstdint>

#include "core/ops.h"
#include "core/param_table.h"
#include "core/tensor_group.h"

namespace openmoe {

// lr(t) = peak * sqrt(warmup) / sqrt(max(t, warmup)), t = step from 0: constant, then inverse
// square root.
double learning_rate_at(const OptimizerConfig& config, std::int64_t step);

// How the ranks of `tensor` share each matrix of a parameter that they have slices of. `tensor`
// must outlive it.
SharedMatrix shared_matrix(const Param& param, TensorGroup& tensor);

// One update of `param` from its gradient, which must already be summed over all ranks; also of the
// rounded copy that products read. `shared` is null where the parameter is whole here; else
// collective over the ranks that share it.
void adafactor_update(Ops& ops, Param& param, const OptimizerConfig& config, std::int64_t step,
                      const SharedMatrix* shared);
// The same of a parameter as `tensor` shares it.
void adafactor_update(Ops& ops, TensorGroup& tensor, Param& param, const OptimizerConfig& config,
                      std::int64_t step);
// One update of every parameter in this way.
void adafactor_step(Ops& ops, TensorGroup& tensor, ParamTable& params,
                    const OptimizerConfig& config, std::int64_t step);

}  // namespace openmoe
