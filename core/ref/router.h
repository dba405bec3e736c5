// Reference top-2 router with groups, queues and auxiliary losses (Zoph et al. 2022; Fedus et al.
// 2021, equations 4 to 6).
#pragma once

#include <vector>

#include "core/ref/number.h"

namespace openmoe::ref {

// The two experts of each token by falling real part of the logit (which is the order of the
// probabilities), ties to the lower index. A constant of the differentiation, so it is an input of
// router_probabilities. choice (N, 2), logits (N, E)
template <typename T>
void router_choice(std::int32_t* choice, const T* logits, Index N, Index E) {
  for (Index n = 0; n < N; ++n) {
    const T* row = logits + n * E;
    Index first = 0;
    for (Index e = 1; e < E; ++e)
      if (real_part(row[e]) > real_part(row[first])) first = e;
    Index second = first == 0 ? 1 : 0;
    for (Index e = second + 1; e < E; ++e)
      if (e != first && real_part(row[e]) > real_part(row[second])) second = e;
    choice[n * 2] = static_cast<std::int32_t>(first);
    choice[n * 2 + 1] = static_cast<std::int32_t>(second);
  }
}

// Places in the queues: all first choices of a group before its second choices; a dropped
// assignment advances the queue. group_picks (N/G, E) counts before drops. slot (N, 2), routed (N)
template <typename T>
void router_slots(std::int32_t* slot, T* group_picks, const std::int32_t* choice,
                  const std::int32_t* routed, Index N, Index E, Index G, Index capacity) {
  for (Index group = 0; group < N / G; ++group) {
    std::vector<Index> filled(static_cast<std::size_t>(E), 0);
    for (Index k = 0; k < 2; ++k)
      for (Index n = group * G; n < (group + 1) * G; ++n) {
        slot[n * 2 + k] = -1;
        if (routed[n] == 0) continue;
        Index& queue = filled[static_cast<std::size_t>(choice[n * 2 + k])];
        if (queue < capacity) slot[n * 2 + k] = static_cast<std::int32_t>(queue);
        ++queue;
      }
    for (Index e = 0; e < E; ++e)
      group_picks[group * E + e] = T(static_cast<double>(filled[static_cast<std::size_t>(e)]));
  }
}

// prob (N, E), log_z (N), gate (N, 2); gates divided by their sum when `normalize`.
template <typename T>
void router_probabilities(T* prob, T* log_z, T* gate, const T* logits, const std::int32_t* choice,
                          bool normalize, Index N, Index E) {
  using std::exp;
  for (Index n = 0; n < N; ++n) {
    log_z[n] = log_sum_exp(logits + n * E, E);
    for (Index e = 0; e < E; ++e) prob[n * E + e] = exp(logits[n * E + e] - log_z[n]);
    const T first = prob[n * E + choice[n * 2]], second = prob[n * E + choice[n * 2 + 1]];
    const T divisor = normalize ? first + second : T(1);
    gate[n * 2] = first / divisor;
    gate[n * 2 + 1] = second / divisor;
  }
}

// Sums over the routed tokens of each group: group_prob (N/G, E), group_routed and group_z (N/G).
template <typename T>
void router_group_sums(T* group_prob, T* group_routed, T* group_z, const T* prob, const T* log_z,
                       const std::int32_t* routed, Index N, Index E, Index G) {
  for (Index group = 0; group < N / G; ++group) {
    for (Index e = 0; e < E; ++e) group_prob[group * E + e] = T(0);
    group_routed[group] = T(0);
    group_z[group] = T(0);
    for (Index n = group * G; n < (group + 1) * G; ++n) {
      if (routed[n] == 0) continue;
      for (Index e = 0; e < E; ++e) group_prob[group * E + e] += prob[n * E + e];
      group_routed[group] += T(1);
      group_z[group] += log_z[n] * log_z[n];
    }
  }
}

// The sum over groups with routed tokens of E * sum_e f_e P_e, f_e = picks/routed, P_e =
// group_prob/routed.
template <typename T>
T router_balance(const T* group_picks, const T* group_prob, const T* group_routed, Index groups,
                 Index E) {
  T balance(0);
  for (Index group = 0; group < groups; ++group) {
    const T routed = group_routed[group];
    if (real_part(routed) == 0) continue;
    for (Index e = 0; e < E; ++e)
      balance += T(static_cast<double>(E)) * (group_picks[group * E + e] / routed) *
                 (group_prob[group * E + e] / routed);
  }
  return balance;
}

}  // namespace openmoe::ref
