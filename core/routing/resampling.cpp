#include "core/routing/resampling.h"

#include <algorithm>
#include <numeric>

#include "core/base/check.h"
#include "core/base/rng.h"

namespace openmoe {
namespace {

// Bits by which divergences of the same groups in another order differ at most: each is a
// difference of entropies of a few bits.
constexpr double kRounding = 1e-12;

double divergence_of(const CountTable& by_document, const std::vector<std::size_t>& documents,
                     const std::vector<std::int32_t>& groups, std::int64_t num_groups) {
  CountTable table(num_groups, by_document.experts);
  for (std::size_t i = 0; i < documents.size(); ++i) {
    const auto from = by_document.row(static_cast<std::int64_t>(documents[i]));
    const auto to = table.row(groups[i]);
    for (std::size_t e = 0; e < from.size(); ++e) to[e] += from[e];
  }
  return jensen_shannon(table);
}

// The value at share q of sorted values, between neighbours by their distance.
double quantile(const std::vector<double>& sorted, double q) {
  const double place = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  const double part = place - static_cast<double>(below);
  return sorted[below] * (1.0 - part) + sorted[above] * part;
}

// The `k` experts with the most counts, ties to the lower index.
std::vector<std::int64_t> most_frequent(std::span<const std::int64_t> counts, std::int64_t k) {
  std::vector<std::int64_t> order(counts.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return counts[static_cast<std::size_t>(a)] > counts[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(k));
  return order;
}

struct Hits {
  std::int64_t right = 0;
  std::int64_t asked = 0;
};

// Which half each document is in, 0 or 1: those of one source take turns, so that both halves hold
// as much of every source as they can. Sources of a single document take turns too.
std::vector<std::int32_t> halves(const RoutingTrace& trace) {
  std::vector<std::size_t> order(trace.documents.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return trace.documents[a].source < trace.documents[b].source;
  });
  std::vector<std::int32_t> half(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) half[order[i]] = static_cast<std::int32_t>(i % 2);
  return half;
}

// Of the tokens of documents of one half, by document, where the other documents predict.
void predict_half(std::vector<Hits>& hits, const RoutingTrace& trace, const LayerTrace& layer,
                  const std::vector<std::int32_t>& keys, std::int64_t num_keys, bool first,
                  const std::vector<std::int32_t>& half_of, std::int32_t half) {
  const auto is_asked = [&](std::size_t n) {
    return half_of[static_cast<std::size_t>(trace.document[n])] == half;
  };
  std::vector<std::int32_t> fit = keys, everything(keys.size(), 0);
  for (std::size_t n = 0; n < keys.size(); ++n) {
    if (is_asked(n)) fit[n] = -1;
    if (fit[n] < 0) everything[n] = -1;
  }
  const Counted counted = first ? Counted::first : Counted::all;
  const std::int64_t wanted = first ? 1 : trace.top_k;
  const CountTable by_key = count_experts(trace, layer, fit, num_keys, counted);
  const CountTable whole = count_experts(trace, layer, everything, 1, counted);
  if (whole.total(0) == 0) return;  // nothing to predict from: one document is in one half
  const auto fallback = most_frequent(whole.row(0), wanted);
  std::vector<std::vector<std::int64_t>> predicted(static_cast<std::size_t>(num_keys));
  for (std::int64_t key = 0; key < num_keys; ++key)
    predicted[static_cast<std::size_t>(key)] =
        by_key.total(key) > 0 ? most_frequent(by_key.row(key), wanted) : fallback;
  for (std::size_t n = 0; n < keys.size(); ++n) {
    if (keys[n] < 0 || !is_asked(n)) continue;
    const auto& experts = predicted[static_cast<std::size_t>(keys[n])];
    Hits& document = hits[static_cast<std::size_t>(trace.document[n])];
    for (std::int64_t k = 0; k < wanted; ++k) {
      const std::uint16_t choice =
          layer.choice[n * static_cast<std::size_t>(trace.top_k) + static_cast<std::size_t>(k)];
      document.right += std::count(experts.begin(), experts.end(), choice);
      ++document.asked;
    }
  }
}

}  // namespace

GroupDifference permutation_test(const CountTable& by_document,
                                 const std::vector<std::int32_t>& groups, std::int64_t num_groups,
                                 std::int64_t permutations, std::uint64_t seed) {
  OPENMOE_CHECK(static_cast<std::int64_t>(groups.size()) == by_document.rows, groups.size());
  std::vector<std::size_t> documents;
  std::vector<std::int32_t> labels;
  for (std::size_t d = 0; d < groups.size(); ++d) {
    if (groups[d] < 0 || by_document.total(static_cast<std::int64_t>(d)) == 0) continue;
    documents.push_back(d);
    labels.push_back(groups[d]);
  }
  GroupDifference result;
  result.documents = static_cast<std::int64_t>(documents.size());
  result.divergence = divergence_of(by_document, documents, labels, num_groups);
  if (documents.empty() || permutations < 1) return result;
  Rng rng(seed, stream_id("routing permutation"));
  std::vector<double> null;
  std::int64_t at_least = 0;
  for (std::int64_t p = 0; p < permutations; ++p) {
    for (std::size_t i = labels.size() - 1; i > 0; --i)
      std::swap(labels[i], labels[rng.next_below(i + 1)]);
    null.push_back(divergence_of(by_document, documents, labels, num_groups));
    at_least += null.back() >= result.divergence - kRounding ? 1 : 0;
  }
  const auto count = static_cast<double>(permutations);
  result.null_mean = std::accumulate(null.begin(), null.end(), 0.0) / count;
  std::sort(null.begin(), null.end());
  result.null_p95 = quantile(null, 0.95);
  result.p_value = (1.0 + static_cast<double>(at_least)) / (1.0 + count);
  return result;
}

Prediction predict_experts(const RoutingTrace& trace, const LayerTrace& layer,
                           const std::vector<std::int32_t>& keys, std::int64_t num_keys, bool first,
                           std::int64_t resamples, std::uint64_t seed) {
  std::vector<Hits> hits(trace.documents.size());
  const std::vector<std::int32_t> half_of = halves(trace);
  for (const std::int32_t half : {0, 1})
    predict_half(hits, trace, layer, keys, num_keys, first, half_of, half);
  std::erase_if(hits, [](const Hits& document) { return document.asked == 0; });
  Hits all;
  for (const Hits& document : hits) {
    all.right += document.right;
    all.asked += document.asked;
  }
  Prediction result;
  if (all.asked == 0) return result;
  result.tokens = all.asked / (first ? 1 : trace.top_k);
  result.accuracy = static_cast<double>(all.right) / static_cast<double>(all.asked);
  if (resamples < 1 || hits.size() < 2) return result;  // one document varies with nothing
  Rng rng(seed, stream_id("routing bootstrap"));
  std::vector<double> drawn;
  for (std::int64_t r = 0; r < resamples; ++r) {
    Hits sum;
    for (std::size_t i = 0; i < hits.size(); ++i) {
      const Hits& document = hits[rng.next_below(hits.size())];
      sum.right += document.right;
      sum.asked += document.asked;
    }
    drawn.push_back(static_cast<double>(sum.right) / static_cast<double>(sum.asked));
  }
  std::sort(drawn.begin(), drawn.end());
  result.low = quantile(drawn, 0.025);
  result.high = quantile(drawn, 0.975);
  return result;
}

}  // namespace openmoe
