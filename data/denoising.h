// Span corruption and prefix LM: from a segment of tokens to (inputs, targets). UL2 (Tay et al.
// 2022) as OpenMoE trained it; span corruption after T5 (Raffel et al. 2020).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/rng.h"

namespace openmoe {

struct SpanLengths {
  std::int64_t raw_tokens = 0;  // of the segment to corrupt
  std::int64_t inputs = 0;      // with sentinels and eos
  std::int64_t targets = 0;     // with sentinels and eos
};

// Noise tokens: round(n * density), half to even, within [1, n - 1]. Spans: max(1, round(noise /
// mean_span)), at most the smaller of noise and clean tokens.
std::int64_t num_noise_tokens(std::int64_t num_tokens, double density);
std::int64_t num_noise_spans(std::int64_t num_tokens, double density, double mean_span);

// The longest segment whose corrupted inputs fit into `inputs_length`; at density 0.5 shortened so
// that the targets fit as well.
SpanLengths span_corruption_lengths(std::int64_t inputs_length, double density, double mean_span);

// Marks noise with 1. Clean and noise stretches alternate, first clean, last noise; both kinds are
// cut into the same number of non-empty parts, each composition equally likely. num_tokens >= 2.
void draw_noise_mask(std::int64_t num_tokens, double density, double mean_span, Rng& rng,
                     std::vector<std::uint8_t>& mask);

// inputs: each noise span becomes one sentinel. targets: each clean span becomes one sentinel.
// Sentinels count down from `first_sentinel`. Appends, no eos.
void corrupt_spans(std::span<const std::int32_t> ids, const std::vector<std::uint8_t>& mask,
                   std::int32_t first_sentinel, std::vector<std::int32_t>& inputs,
                   std::vector<std::int32_t>& targets);

}  // namespace openmoe
