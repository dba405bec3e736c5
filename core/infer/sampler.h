// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace openmoe::infer {

struct SamplingOptions {
  double temperature = 0.0;  // 0: greedy, the most likely token, ties to the lower id
  std::int64_t top_k = 0;    // only the k most likely tokens; 0: all
  double top_p = 1.0;        // only the most likely tokens that together reach this probability
  double repetition_penalty = 1.0;  // divides positive and multiplies negative logits of tokens
                                    // that the sequence holds (Keskar et al. 2019); 1: none
  std::uint64_t seed = 1;
};

// The next token. `logits` (V) are changed. `context`: the tokens so far, with the prompt. Allowed
// are the ids in [1, num_ids): id 0 only starts sequences, and rows beyond the tokenizer's ids were
// never trained. The random number is that of (seed, stream, index), whatever else is sampled
// beside.
std::int32_t sample_token(std::span<float> logits, std::span<const std::int32_t> context,
                          const SamplingOptions& options, std::int64_t num_ids,
                          std::uint64_t stream, std::uint64_t index);

// Log-probability of a token under the whole softmax, and of the most likely ones.
struct TokenScore {
  float log_prob = 0.0f;
  bool is_most_likely = false;                      // ties to the lower id
  std::vector<std::pair<std::int32_t, float>> top;  // (id, log-probability), falling
};
TokenScore score_token(std::span<const float> logits, std::int32_t token, std::int64_t num_top);

}  // namespace openmoe::infer
