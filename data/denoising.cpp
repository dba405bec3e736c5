#include "data/denoising.h"

#include <algorithm>
#include <cmath>

#include "core/base/check.h"

namespace openmoe {
namespace {

// Default rounding mode: half to even, as Python and TensorFlow round.
std::int64_t round_half_even(double value) {
  return static_cast<std::int64_t>(std::nearbyint(value));
}

SpanLengths lengths_of(std::int64_t num_tokens, double density, double mean_span) {
  const std::int64_t noise = num_noise_tokens(num_tokens, density);
  const std::int64_t spans = num_noise_spans(num_tokens, density, mean_span);
  return {num_tokens, num_tokens - noise + spans + 1, noise + spans + 1};
}

// Lengths of `parts` non-empty pieces of `total`, every composition equally likely: parts - 1 of
// total - 1 cuts, drawn without repetition by Floyd's method (Bentley and Floyd 1987).
void draw_composition(std::int64_t total, std::int64_t parts, Rng& rng,
                      std::vector<std::int64_t>& lengths) {
  std::vector<std::uint8_t> is_cut(static_cast<std::size_t>(total),
                                   0);  // [c]: a cut before element c, c >= 1
  const std::int64_t places = total - 1;
  for (std::int64_t j = places - (parts - 1) + 1; j <= places; ++j) {
    const auto pick = static_cast<std::size_t>(1 + rng.next_below(static_cast<std::uint64_t>(j)));
    is_cut[is_cut[pick] != 0 ? static_cast<std::size_t>(j) : pick] = 1;
  }
  lengths.clear();
  std::int64_t begin = 0;
  for (std::int64_t i = 1; i <= total; ++i) {
    if (i < total && is_cut[static_cast<std::size_t>(i)] == 0) continue;
    lengths.push_back(i - begin);
    begin = i;
  }
}

}  // namespace

std::int64_t num_noise_tokens(std::int64_t num_tokens, double density) {
  const std::int64_t noise = round_half_even(static_cast<double>(num_tokens) * density);
  return std::clamp<std::int64_t>(noise, 1, std::max<std::int64_t>(1, num_tokens - 1));
}

std::int64_t num_noise_spans(std::int64_t num_tokens, double density, double mean_span) {
  const std::int64_t noise = num_noise_tokens(num_tokens, density);
  const std::int64_t spans = round_half_even(static_cast<double>(noise) / mean_span);
  return std::clamp<std::int64_t>(spans, 1,
                                  std::max<std::int64_t>(1, std::min(noise, num_tokens - noise)));
}

SpanLengths span_corruption_lengths(std::int64_t inputs_length, double density, double mean_span) {
  OPENMOE_CHECK(inputs_length >= 4, "inputs of ", inputs_length, " positions");
  std::int64_t num_tokens = 2;
  while (lengths_of(num_tokens + 1, density, mean_span).inputs <= inputs_length) ++num_tokens;
  SpanLengths lengths = lengths_of(num_tokens, density, mean_span);
  if (density == 0.5 && lengths.targets > lengths.inputs) {
    --lengths.raw_tokens;
    --lengths.targets;
  }
  return lengths;
}

void draw_noise_mask(std::int64_t num_tokens, double density, double mean_span, Rng& rng,
                     std::vector<std::uint8_t>& mask) {
  OPENMOE_CHECK(num_tokens >= 2, "a segment of ", num_tokens, " tokens cannot be corrupted");
  const std::int64_t noise = num_noise_tokens(num_tokens, density);
  const std::int64_t spans = num_noise_spans(num_tokens, density, mean_span);
  std::vector<std::int64_t> clean_lengths;
  std::vector<std::int64_t> noise_lengths;
  draw_composition(num_tokens - noise, spans, rng, clean_lengths);
  draw_composition(noise, spans, rng, noise_lengths);
  mask.clear();
  for (std::size_t i = 0; i < noise_lengths.size(); ++i) {
    mask.insert(mask.end(), static_cast<std::size_t>(clean_lengths[i]), 0);
    mask.insert(mask.end(), static_cast<std::size_t>(noise_lengths[i]), 1);
  }
}

void corrupt_spans(std::span<const std::int32_t> ids, const std::vector<std::uint8_t>& mask,
                   std::int32_t first_sentinel, std::vector<std::int32_t>& inputs,
                   std::vector<std::int32_t>& targets) {
  OPENMOE_CHECK(ids.size() == mask.size(), ids.size(), " ids, ", mask.size(), " marks");
  std::int32_t next[2] = {first_sentinel, first_sentinel};
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const bool is_noise = mask[i] != 0;
    std::vector<std::int32_t>& kept = is_noise ? targets : inputs;
    std::vector<std::int32_t>& replaced = is_noise ? inputs : targets;
    if (i == 0 || mask[i] != mask[i - 1]) replaced.push_back(next[is_noise ? 0 : 1]--);
    kept.push_back(ids[i]);
  }
}

}  // namespace openmoe
