// The router: probabilities and choices per token, queues and sums per group. Small beside the
// products around it; all sums run in token order within a group.
#include <algorithm>
#include <cmath>

#include "core/cpu/cpu_ops.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"

namespace openmoe {
namespace {

struct Choice {
  std::int32_t first = 0;
  std::int32_t second = 1;
};

// By falling logit, which is the order of the probabilities without their rounding; ties to the
// lower index. Valid indices whatever the values: a NaN must reach the loss, where it is reported,
// not an array bound.
Choice choose(const float* logits, std::int64_t E) {
  Choice choice;
  for (std::int32_t e = 1; e < E; ++e)
    if (logits[e] > logits[choice.first]) choice.first = e;
  choice.second = choice.first == 0 ? 1 : 0;
  for (std::int32_t e = choice.second + 1; e < E; ++e)
    if (e != choice.first && logits[e] > logits[choice.second]) choice.second = e;
  return choice;
}

// Queue places of one group. `picks` (E) counts the queues as they fill, and beyond capacity: exact
// in f32 below 2^24 tokens.
void fill_queues(std::int32_t* slot, float* picks, const std::int32_t* choice,
                 const std::int32_t* routed, std::int64_t E, const RouterOptions& options) {
  std::fill_n(picks, E, 0.0f);
  for (std::int64_t k = 0; k < 2; ++k)
    for (std::int64_t n = 0; n < options.group_tokens; ++n) {
      slot[n * 2 + k] = -1;
      if (routed[n] == 0) continue;
      float& queue = picks[choice[n * 2 + k]];
      if (static_cast<std::int64_t>(queue) < options.capacity)
        slot[n * 2 + k] = static_cast<std::int32_t>(queue);
      queue += 1.0f;
    }
}

// Sums over the routed tokens of one group; `sums` has room for E values.
void sum_group(float* group_prob, float* group_routed, float* group_z, double* sums,
               const float* prob, const float* log_z, const std::int32_t* routed, std::int64_t E,
               std::int64_t G) {
  std::fill_n(sums, E, 0.0);
  double z = 0.0;
  std::int64_t count = 0;
  for (std::int64_t n = 0; n < G; ++n) {
    if (routed[n] == 0) continue;
    for (std::int64_t e = 0; e < E; ++e) sums[e] += static_cast<double>(prob[n * E + e]);
    z += static_cast<double>(log_z[n]) * static_cast<double>(log_z[n]);
    ++count;
  }
  for (std::int64_t e = 0; e < E; ++e) group_prob[e] = static_cast<float>(sums[e]);
  *group_routed = static_cast<float>(count);
  *group_z = static_cast<float>(z);
}

}  // namespace

void CpuOps::do_router_forward(const RouterOutput& out, Tensor logits, Tensor routed,
                               const RouterOptions& options) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const std::int64_t N = logits.size(0), E = logits.size(1), G = options.group_tokens;
  const float* const in = logits.as<float>();
  float* const prob = out.prob.as<float>();
  float* const log_z = out.log_z.as<float>();
  float* const gate = out.gate.as<float>();
  std::int32_t* const choice = out.choice.as<std::int32_t>();
  cpu::for_chunks(
      N, cpu::chunk_rows(16 * E), [&](std::int64_t begin, std::int64_t end, std::int64_t) {
        for (std::int64_t n = begin; n < end; ++n) {
          const cpu::ExpSum z = kernels.exp_sum(in + n * E, E);
          log_z[n] = static_cast<float>(static_cast<double>(z.largest) + std::log(z.sum));
          kernels.exp_scaled(prob + n * E, in + n * E, z.largest, static_cast<float>(1.0 / z.sum),
                             E);
          const Choice pick = choose(in + n * E, E);
          const float first = prob[n * E + pick.first], second = prob[n * E + pick.second];
          const float divisor = options.normalize_gates ? first + second : 1.0f;
          choice[n * 2] = pick.first;
          choice[n * 2 + 1] = pick.second;
          gate[n * 2] = first / divisor;
          gate[n * 2 + 1] = second / divisor;
        }
      });

  const std::int64_t groups = N / G;
  const std::int32_t* const real = routed.as<std::int32_t>();
  std::int32_t* const slot = out.slot.as<std::int32_t>();
  double* const sums = scratch_.get<double>(groups * E);
  cpu::for_chunks(groups, 1, [&](std::int64_t g, std::int64_t, std::int64_t) {
    fill_queues(slot + g * G * 2, out.group_picks.as<float>() + g * E, choice + g * G * 2,
                real + g * G, E, options);
    sum_group(out.group_prob.as<float>() + g * E, out.group_routed.as<float>() + g,
              out.group_z.as<float>() + g, sums + g * E, prob + g * G * E, log_z + g * G,
              real + g * G, E, G);
  });
}

// total = sum of dgate gate + scale.balance * sum over groups of E sum_e f_e P_e + scale.z * sum of
// log_z^2, where f is a constant and P_e = group_prob / routed. With q_e = d total / d prob_e:
// dlogit_e = prob_e (q_e - sum_j q_j prob_j), plus 2 scale.z log_z prob_e. A normalised gate g_k =
// p_k / (p_1 + p_2) passes on (dg_k - sum_j dg_j g_j) / (p_1 + p_2).
void CpuOps::do_router_backward(Tensor dlogits, Tensor dgate, Tensor routed,
                                const RouterOutput& saved, const RouterLossScale& scale,
                                const RouterOptions& options) {
  const std::int64_t N = dlogits.size(0), E = dlogits.size(1), G = options.group_tokens;
  const std::int32_t* const real = routed.as<std::int32_t>();
  const std::int32_t* const choice = saved.choice.as<std::int32_t>();
  const float* const prob = saved.prob.as<float>();
  const float* const log_z = saved.log_z.as<float>();
  const float* const gate = saved.gate.as<float>();
  const float* const picks = saved.group_picks.as<float>();
  const float* const group_routed = saved.group_routed.as<float>();
  const float* const dg = dgate.as<float>();
  float* const out = dlogits.as<float>();
  cpu::for_chunks(N, cpu::chunk_rows(16 * E),
                  [&](std::int64_t begin, std::int64_t end, std::int64_t) {
                    for (std::int64_t n = begin; n < end; ++n) {
                      float* const q = out + n * E;  // d total / d prob, then d total / d logits
                      if (real[n] == 0) {
                        std::fill_n(q, E, 0.0f);
                        continue;
                      }
                      const float* const p = prob + n * E;
                      const float count = group_routed[n / G];
                      const float balance = scale.balance * static_cast<float>(E) / (count * count);
                      for (std::int64_t e = 0; e < E; ++e) q[e] = balance * picks[n / G * E + e];
                      const std::int32_t first = choice[n * 2], second = choice[n * 2 + 1];
                      float dfirst = dg[n * 2], dsecond = dg[n * 2 + 1];
                      if (options.normalize_gates) {
                        const float mean = dfirst * gate[n * 2] + dsecond * gate[n * 2 + 1];
                        const float divisor = p[first] + p[second];
                        dfirst = (dfirst - mean) / divisor;
                        dsecond = (dsecond - mean) / divisor;
                      }
                      q[first] += dfirst;
                      q[second] += dsecond;
                      float mean = 0.0f;
                      for (std::int64_t e = 0; e < E; ++e) mean += q[e] * p[e];
                      const float z = 2.0f * scale.z * log_z[n];
                      for (std::int64_t e = 0; e < E; ++e) q[e] = p[e] * (q[e] - mean + z);
                    }
                  });
}

}  // namespace openmoe
