// Generator: sequences of tokens from a Decoder: continuing prompts, and scoring given texts. Ids
// only; text is the caller's. Every sequence starts with id 0, as training fed it; prompts come
// without it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/infer/decoder.h"
#include "core/infer/sampler.h"

namespace openmoe::infer {

struct GenerationRequest {
  std::vector<std::int32_t> prompt;
  std::int64_t max_new_tokens = 0;  // never beyond the decoder's max_length
  SamplingOptions sampling;
  std::uint64_t stream = 0;  // random stream: results depend on (seed, stream) and not on the batch
  std::int32_t eos = 1;      // ends the sequence; -1: no token does
  std::vector<std::vector<std::int32_t>> stop_sequences;  // each ends it when it has been generated
  std::int64_t num_log_probs =
      -1;  // of each token: -1 none, 0 its own, n also of the n most likely
};

enum class FinishReason { eos, stop, length };
const char* name_of(FinishReason reason);

struct GenerationResult {
  std::vector<std::int32_t> tokens;  // generated, without eos or the stop sequence that ended it
  std::vector<TokenScore> scores;    // of `tokens`, when asked for
  FinishReason finish = FinishReason::length;
};

// A text to score: the log-probabilities of tokens[first ...] given those before them.
struct ScoreRequest {
  std::vector<std::int32_t> tokens;
  std::int64_t first = 0;
  std::int64_t num_top = 0;
};

class Generator {
 public:
  // `num_ids`: ids that may be generated are below it (the tokenizer's). `use_cache` false computes
  // every token from the whole sequence anew: the slow definition that tests compare with.
  Generator(Decoder& decoder, std::int64_t num_ids, bool use_cache = true);

  // Called after each token with the request's index and its tokens so far; true stops that
  // sequence with FinishReason::stop.
  using OnToken = std::function<bool(std::size_t, const std::vector<std::int32_t>&)>;

  // Requests take the decoder's slots as they become free; with a capacity, in whole batches, since
  // a call is then what shares the slots of experts. Throws UserError when a prompt leaves no room
  // for a token.
  std::vector<GenerationResult> generate(std::span<const GenerationRequest> requests,
                                         const OnToken& on_token = {});

  // One list per request, of the scores of tokens[first], ... Texts that begin alike are computed
  // once. Throws UserError when a text is longer than the decoder's max_length.
  std::vector<std::vector<TokenScore>> score(std::span<const ScoreRequest> requests);

 private:
  struct Active;
  void admit(std::span<const GenerationRequest> requests, std::size_t& next,
             std::vector<Active>& active);
  void compute(std::vector<Active>& active);
  void run_rows(std::span<const DecodeRow> rows,
                const std::function<void(std::int64_t, std::span<float>)>& use);
  bool accept(std::span<const GenerationRequest> requests, Active& sequence,
              GenerationResult& result, const OnToken& on_token);

  Decoder& decoder_;
  std::int64_t num_ids_;
  bool use_cache_;
};

}  // namespace openmoe::infer
