#include "core/infer/sampler.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "core/base/check.h"
#include "core/base/rng.h"

namespace openmoe::infer {
namespace {

void penalise(std::span<float> logits, std::span<const std::int32_t> context, double penalty) {
  const std::unordered_set<std::int32_t> seen(context.begin(), context.end());
  for (const std::int32_t id : seen) {
    float& logit = logits[static_cast<std::size_t>(id)];
    logit = static_cast<float>(logit > 0.0f ? static_cast<double>(logit) / penalty
                                            : static_cast<double>(logit) * penalty);
  }
}

std::int32_t most_likely(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

struct Candidate {
  std::int32_t id;
  double weight;  // probability, up to a common factor
};
// The heap's top is the likeliest candidate, of equals the one with the lower id.
bool less_likely(const Candidate& a, const Candidate& b) {
  return a.weight < b.weight || (a.weight == b.weight && a.id > b.id);
}

// The likeliest candidates within top_k and top_p, falling.
std::vector<Candidate> likeliest(std::vector<Candidate> heap, const SamplingOptions& options,
                                 double total) {
  std::make_heap(heap.begin(), heap.end(), less_likely);
  std::vector<Candidate> kept;
  const auto most = options.top_k > 0 ? static_cast<std::size_t>(options.top_k) : heap.size();
  if (options.top_k > 0) {  // top_p is a share of what top_k leaves
    std::vector<Candidate> first = heap;
    const std::size_t count = std::min(most, first.size());
    std::partial_sort(first.begin(), first.begin() + static_cast<std::ptrdiff_t>(count),
                      first.end(),
                      [](const Candidate& a, const Candidate& b) { return less_likely(b, a); });
    total = 0.0;
    for (std::size_t i = 0; i < count; ++i) total += first[i].weight;
  }
  double reached = 0.0;
  while (!heap.empty() && kept.size() < most && (kept.empty() || reached < options.top_p * total)) {
    std::pop_heap(heap.begin(), heap.end(), less_likely);
    kept.push_back(heap.back());
    reached += heap.back().weight;
    heap.pop_back();
  }
  return kept;
}

}  // namespace

std::int32_t sample_token(std::span<float> logits, std::span<const std::int32_t> context,
                          const SamplingOptions& options, std::int64_t num_ids,
                          std::uint64_t stream, std::uint64_t index) {
  OPENMOE_CHECK(num_ids > 1 && num_ids <= static_cast<std::int64_t>(logits.size()), num_ids,
                " ids of ", logits.size());
  if (options.repetition_penalty != 1.0) penalise(logits, context, options.repetition_penalty);
  const std::span<const float> allowed = logits.subspan(1, static_cast<std::size_t>(num_ids - 1));
  const std::int32_t best = most_likely(allowed);
  if (options.temperature <= 0.0) return best + 1;

  const auto top = static_cast<double>(allowed[static_cast<std::size_t>(best)]);
  std::vector<Candidate> candidates;
  candidates.reserve(allowed.size());
  double total = 0.0;
  for (std::size_t i = 0; i < allowed.size(); ++i) {
    const double weight = std::exp((static_cast<double>(allowed[i]) - top) / options.temperature);
    candidates.push_back({static_cast<std::int32_t>(i + 1), weight});
    total += weight;
  }
  if (options.top_k > 0 || options.top_p < 1.0) {
    candidates = likeliest(std::move(candidates), options, total);
    total = 0.0;
    for (const Candidate& candidate : candidates) total += candidate.weight;
  }
  double left = Rng(options.seed, stream_id("sample", stream)).uniform_at(index) * total;
  for (const Candidate& candidate : candidates) {
    left -= candidate.weight;
    if (left < 0.0) return candidate.id;
  }
  return candidates.back().id;
}

TokenScore score_token(std::span<const float> logits, std::int32_t token, std::int64_t num_top) {
  const std::int32_t best = most_likely(logits);
  const auto shift = static_cast<double>(logits[static_cast<std::size_t>(best)]);
  double total = 0.0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit) - shift);
  const double log_z = shift + std::log(total);
  const auto log_prob = [&](std::int32_t id) {
    return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(id)]) - log_z);
  };
  TokenScore score;
  score.log_prob = log_prob(token);
  score.is_most_likely = token == best;
  if (num_top == 1) score.top = {{best, log_prob(best)}};
  if (num_top <= 1) return score;
  std::vector<std::int32_t> ids(logits.size());
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i);
  const auto count = static_cast<std::ptrdiff_t>(
      std::min<std::size_t>(static_cast<std::size_t>(num_top), ids.size()));
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(),
                    [&](std::int32_t a, std::int32_t b) {
                      const float la = logits[static_cast<std::size_t>(a)];
                      const float lb = logits[static_cast<std::size_t>(b)];
                      return la > lb || (la == lb && a < b);
                    });
  for (std::ptrdiff_t i = 0; i < count; ++i)
    score.top.emplace_back(ids[static_cast<std::size_t>(i)],
                           log_prob(ids[static_cast<std::size_t>(i)]));
  return score;
}

}  // namespace openmoe::infer
