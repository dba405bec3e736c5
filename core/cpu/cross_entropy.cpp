// Softmax cross-entropy over a large vocabulary: two passes over each row of logits, the second
// writing the gradient.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/cpu/cpu_ops.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"

namespace openmoe {
namespace {

void check_targets(const std::int32_t* targets, std::int64_t n, std::int64_t V) {
  for (std::int64_t i = 0; i < n; ++i)
    OPENMOE_CHECK(targets[i] >= 0 && targets[i] < V, "softmax_cross_entropy: targets[", i, "] is ",
                  targets[i], ", the vocabulary has ", V);
}

// Whether `target` is the first index of the row's largest value.
bool is_argmax(const float* row, std::int32_t target, float largest) {
  return row[target] == largest && std::find(row, row + target, largest) == row + target;
}

}  // namespace

// For one token, with p = softmax: d(log Z) = p, so dlogits = scale w ((1 + 2 z_weight log Z) p -
// onehot(target)).
LossSums CpuOps::do_softmax_cross_entropy(Tensor logits, Tensor targets, Tensor weights,
                                          Tensor token_loss, float z_weight, float scale) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const std::int64_t n = logits.size(0), V = logits.size(1);
  const std::int32_t* const target = targets.as<std::int32_t>();
  const float* const weight = weights.as<float>();
  float* const data = logits.as<float>();
  float* const losses = token_loss ? token_loss.as<float>() : nullptr;
  check_targets(target, n, V);
  LossSums* const rows = scratch_.get<LossSums>(n);
  cpu::for_chunks(n, cpu::chunk_rows(V), [&](std::int64_t begin, std::int64_t end, std::int64_t) {
    for (std::int64_t i = begin; i < end; ++i) {
      float* const row = data + i * V;
      rows[i] = LossSums{};
      if (losses != nullptr) losses[i] = 0.0f;
      if (weight[i] == 0.0f) {
        if (scale > 0.0f) std::fill_n(row, V, 0.0f);
        continue;
      }
      float largest = 0.0f;
      double sum = 0.0;
      kernels.exp_sum(row, V, &largest, &sum);
      const double w = static_cast<double>(weight[i]);
      const double log_z = static_cast<double>(largest) + std::log(sum);
      rows[i].cross_entropy = w * (log_z - static_cast<double>(row[target[i]]));
      rows[i].log_z_square = w * log_z * log_z;
      rows[i].correct = is_argmax(row, target[i], largest) ? w : 0.0;
      if (losses != nullptr) losses[i] = static_cast<float>(rows[i].cross_entropy);
      if (scale > 0.0f) {
        const double factor =
            static_cast<double>(scale) * w * (1.0 + 2.0 * static_cast<double>(z_weight) * log_z);
        kernels.exp_scaled(row, row, largest, static_cast<float>(factor / sum), V);
        row[target[i]] -= static_cast<float>(static_cast<double>(scale) * w);
      }
    }
  });
  LossSums total;
  for (std::int64_t i = 0; i < n; ++i) {
    total.cross_entropy += rows[i].cross_entropy;
    total.log_z_square += rows[i].log_z_square;
    total.correct += rows[i].correct;
  }
  return total;
}

}  // namespace openmoe
