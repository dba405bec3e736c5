// Softmax cross-entropy over a large vocabulary: two passes over each row of logits, the second
// writing the gradient. Between them ranks that share the vocabulary add up their sums.
#include <algorithm>
#include <cmath>

#include "core/cpu/cpu_ops.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"

namespace openmoe {
namespace {

void check_targets(const std::int32_t* targets, std::int64_t n, std::int64_t total) {
  for (std::int64_t i = 0; i < n; ++i)
    OPENMOE_CHECK(targets[i] >= 0 && targets[i] < total, "softmax_cross_entropy: targets[", i,
                  "] is ", targets[i], ", the vocabulary has ", total);
}

// What is known of the rows of a call.
struct Rows {
  const cpu::RowKernels& kernels;
  float* logits;
  std::int64_t V;      // columns here
  std::int64_t first;  // id of the first of them
  const std::int32_t* target;
  const float* weight;
  float* token_loss;  // or null
  float z_weight, scale;
  LogitSums* sums;
  LossSums* losses;
  float* shifts;  // of each row, one per block

  float* row(std::int64_t i) const { return logits + i * V; }
  float* shifts_of(std::int64_t i) const {
    return shifts + i * cpu::num_chunks(V, cpu::kReductionBlock);
  }
  bool has_target(std::int64_t i) const { return target[i] >= first && target[i] < first + V; }

  // In training the logits become exponentials, each block relative to a shift of its own.
  void add_up(std::int64_t i) const {
    if (weight[i] == 0.0f) return;
    const double target_logit =
        has_target(i) ? static_cast<double>(row(i)[target[i] - first]) : 0.0;
    const cpu::ExpSum z = scale > 0.0f ? kernels.exp_sum_in_place(row(i), shifts_of(i), V)
                                       : kernels.exp_sum(row(i), V);
    sums[i] = {static_cast<double>(z.largest), z.sum, target_logit, first + z.argmax};
  }

  // For one token, with p = softmax: d(log Z) = p, so dlogits = scale w ((1 + 2 z_weight log Z) p -
  // onehot(target)).
  void finish(std::int64_t i) const {
    losses[i] = LossSums{};
    if (token_loss != nullptr) token_loss[i] = 0.0f;
    if (weight[i] == 0.0f) {
      if (scale > 0.0f) std::fill_n(row(i), V, 0.0f);
      return;
    }
    const LogitSums& z = sums[i];
    const double w = static_cast<double>(weight[i]);
    const double log_z = z.largest + std::log(z.sum);
    losses[i].cross_entropy = w * (log_z - z.target);
    losses[i].log_z_square = w * log_z * log_z;
    losses[i].correct = z.argmax == target[i] ? w : 0.0;
    if (token_loss != nullptr) token_loss[i] = static_cast<float>(losses[i].cross_entropy);
    if (scale == 0.0f) return;
    const double factor = static_cast<double>(scale) * w *
                          (1.0 + 2.0 * static_cast<double>(z_weight) * log_z) / z.sum;
    const std::int64_t blocks = cpu::num_chunks(V, cpu::kReductionBlock);
    for (std::int64_t block = 0; block < blocks; ++block) {
      float* const values = row(i) + block * cpu::kReductionBlock;
      const double raise = std::exp(static_cast<double>(shifts_of(i)[block]) - z.largest);
      kernels.scale(values, static_cast<float>(factor * raise), values,
                    std::min(cpu::kReductionBlock, V - block * cpu::kReductionBlock));
    }
    if (has_target(i))
      row(i)[target[i] - first] -= static_cast<float>(static_cast<double>(scale) * w);
  }
};

}  // namespace

LossSums CpuOps::do_softmax_cross_entropy(Tensor logits, Tensor targets, Tensor weights,
                                          Tensor token_loss, float z_weight, float scale,
                                          const SharedVocabulary* shared) {
  const std::int64_t n = logits.size(0), V = logits.size(1);
  const VocabularyRange range = shared != nullptr ? shared->range : VocabularyRange{};
  check_targets(targets.as<std::int32_t>(), n, range.is_whole() ? V : range.total);
  // Per row its sums, its losses, then the shifts of its blocks.
  static_assert(sizeof(LogitSums) == 4 * sizeof(double) && sizeof(LossSums) == 3 * sizeof(double));
  const std::int64_t blocks = cpu::num_chunks(V, cpu::kReductionBlock);
  double* const room = scratch_.get<double>(7 * n + cpu::num_chunks(n * blocks, 2));
  const Rows rows{.kernels = cpu::row_kernels(cpu::cpu_isa()),
                  .logits = logits.as<float>(),
                  .V = V,
                  .first = range.first,
                  .target = targets.as<std::int32_t>(),
                  .weight = weights.as<float>(),
                  .token_loss = token_loss ? token_loss.as<float>() : nullptr,
                  .z_weight = z_weight,
                  .scale = scale,
                  .sums = reinterpret_cast<LogitSums*>(room),
                  .losses = reinterpret_cast<LossSums*>(room + 4 * n),
                  .shifts = reinterpret_cast<float*>(room + 7 * n)};
  const auto for_rows = [&](auto&& work) {
    cpu::for_chunks(n, cpu::chunk_rows(V), [&](std::int64_t begin, std::int64_t end, std::int64_t) {
      for (std::int64_t i = begin; i < end; ++i) work(i);
    });
  };
  if (shared == nullptr) {  // a row is finished while it is in the cache
    for_rows([&](std::int64_t i) {
      rows.add_up(i);
      rows.finish(i);
    });
  } else {
    std::fill_n(rows.sums, n, LogitSums{});
    for_rows([&](std::int64_t i) { rows.add_up(i); });
    shared->combine({rows.sums, static_cast<std::size_t>(n)});
    for_rows([&](std::int64_t i) { rows.finish(i); });
  }
  LossSums total;
  for (std::int64_t i = 0; i < n; ++i) {
    total.cross_entropy += rows.losses[i].cross_entropy;
    total.log_z_square += rows.losses[i].log_z_square;
    total.correct += rows.losses[i].correct;
  }
  return total;
}

}  // namespace openmoe
