// Softmax cross-entropy over a large vocabulary: two passes over each row of logits, the second
// writing the gradient.
#include <algorithm>
#include <cmath>

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
  // Per row its sums, then the shifts of its blocks.
  const std::int64_t blocks = cpu::num_chunks(V, cpu::kReductionBlock);
  LossSums* const rows = scratch_.get<LossSums>(n + cpu::num_chunks(n * blocks, 6));
  static_assert(sizeof(LossSums) == 6 * sizeof(float));
  float* const all_shifts = reinterpret_cast<float*>(rows + n);
  cpu::for_chunks(n, cpu::chunk_rows(V), [&](std::int64_t begin, std::int64_t end, std::int64_t) {
    for (std::int64_t i = begin; i < end; ++i) {
      float* const row = data + i * V;
      rows[i] = LossSums{};
      if (losses != nullptr) losses[i] = 0.0f;
      if (weight[i] == 0.0f) {
        if (scale > 0.0f) std::fill_n(row, V, 0.0f);
        continue;
      }
      const double w = static_cast<double>(weight[i]);
      const double target_logit = static_cast<double>(row[target[i]]);
      float* const shifts = all_shifts + i * blocks;
      const cpu::ExpSum z =
          scale > 0.0f ? kernels.exp_sum_in_place(row, shifts, V) : kernels.exp_sum(row, V);
      const double log_z = static_cast<double>(z.largest) + std::log(z.sum);
      rows[i].cross_entropy = w * (log_z - target_logit);
      rows[i].log_z_square = w * log_z * log_z;
      rows[i].correct = z.argmax == target[i] ? w : 0.0;
      if (losses != nullptr) losses[i] = static_cast<float>(rows[i].cross_entropy);
      if (scale == 0.0f) continue;
      const double factor = static_cast<double>(scale) * w *
                            (1.0 + 2.0 * static_cast<double>(z_weight) * log_z) / z.sum;
      for (std::int64_t block = 0; block < blocks; ++block) {
        float* const values = row + block * cpu::kReductionBlock;
        const double raise =
            std::exp(static_cast<double>(shifts[block]) - static_cast<double>(z.largest));
        kernels.scale(values, static_cast<float>(factor * raise), values,
                      std::min(cpu::kReductionBlock, V - block * cpu::kReductionBlock));
      }
      row[target[i]] -= static_cast<float>(static_cast<double>(scale) * w);
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
