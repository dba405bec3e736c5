// How sure a statistic is: a permutation test and bootstrap intervals. Both resample whole
// documents, because tokens of one document are not independent of each other.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "core/routing/statistics.h"
#include "core/routing/trace.h"

namespace openmoe {

// Is the routing of groups of documents (domains, languages, tasks) more different than that of
// random groups of the same sizes?
struct GroupDifference {
  double divergence = 0.0;  // Jensen-Shannon divergence of the groups, bits
  double null_mean = 0.0;   // mean over permutations of the documents' groups
  double null_p95 = 0.0;    // exceeded by 5 % of the permutations
  double p_value = 1.0;     // (1 + permutations with at least this divergence) / (1 + permutations)
  std::int64_t documents = 0;
};
// by_document (documents, E); groups (documents): 0 to num_groups - 1, -1: left out.
GroupDifference permutation_test(const CountTable& by_document,
                                 const std::vector<std::int32_t>& groups, std::int64_t num_groups,
                                 std::int64_t permutations, std::uint64_t seed);

// How well a key alone predicts the expert of a token: the experts that tokens of the same key had
// in the other half of the documents (those of each source taking turns) are the prediction; keys
// that do not occur there get the experts that are most frequent there. `first`: share of tokens
// whose first choice is the most frequent first choice. Otherwise: share of the K choices that are
// among the K most frequent.
struct Prediction {
  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  double accuracy = kUnknown;  // kUnknown: no document to predict, or none to predict from
  // 95 % interval, bootstrap over documents; kUnknown without resamples or a second document.
  double low = kUnknown, high = kUnknown;
  std::int64_t tokens = 0;
};
// keys (N), each 0 to num_keys - 1, or -1: the token is left out. resamples 0: no interval.
Prediction predict_experts(const RoutingTrace& trace, const LayerTrace& layer,
                           const std::vector<std::int32_t>& keys, std::int64_t num_keys, bool first,
                           std::int64_t resamples, std::uint64_t seed);

}  // namespace openmoe
