// Objective: how a source's token stream becomes training rows. It decides in advance how many
// tokens each row takes, so that the tokens of any row can be found without building the rows
// before it.
//
// UL2 mixes six denoisers (paper Table 2). Their shares are exact in every period of examples, in a
// keyed random order.
//   faithful: one example per row of T = inputs + targets positions (T/2 each), the rest is
//   padding, as the original run. packed:   denoisers that nearly fill a row get one row each; the
//   others share a row in two halves, each cut to fill its
//             half. Segments are masked from each other; nothing is trimmed; at most a few
//             positions of a row stay empty.
// Causal LM
//   faithful: rows are consecutive cuts of T tokens of the stream, eos after each document; the
//   last token of each row is
//             overwritten by eos; attention crosses documents.
//   packed:   all T tokens are kept; each document is a segment of its own.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/base/rng.h"
#include "core/batch.h"
#include "core/config/recipe.h"
#include "data/document_stream.h"
#include "data/tokenizer.h"

namespace openmoe {

enum class DenoiserKind { span_corruption, prefix_lm, causal_lm };

struct Denoiser {
  std::string name;  // for `data show`
  DenoiserKind kind = DenoiserKind::span_corruption;
  double mean_span = 0.0;
  double density = 0.0;
  double rate = 1.0;                   // share of the examples
  std::vector<std::int32_t> mode_tag;  // put before the inputs
  std::int64_t row_tokens = 0;         // corpus tokens of an example that has a row to itself
  std::int64_t half_tokens =
      0;  // packed: of an example in half a row; 0: this denoiser takes whole rows
};

// The examples of one row. part i of a row with two parts fills half i.
struct RowPlan {
  int num_parts = 0;
  int denoisers[2] = {0, 0};        // indices into Objective::denoisers()
  std::int64_t tokens[2] = {0, 0};  // corpus tokens of each part
  std::int64_t offset = 0;          // corpus tokens of the rows before it in the period
};

class Objective {
 public:
  // Throws UserError when sequence_length is too short or odd, or the tokenizer has too few
  // sentinels.
  Objective(ObjectiveKind kind, Packing packing, std::int64_t sequence_length,
            const Tokenizer& tokenizer);

  const std::vector<Denoiser>& denoisers() const { return denoisers_; }
  DocumentStream::Options stream_options() const;
  std::int64_t rows_per_period() const { return static_cast<std::int64_t>(period_.size()); }
  std::int64_t tokens_per_period() const { return tokens_per_period_; }
  double tokens_per_row() const {
    return static_cast<double>(tokens_per_period_) / static_cast<double>(rows_per_period());
  }

  // The rows of one period, in an order and pairing that (seed, stream) decides.
  void plan_period(std::uint64_t seed, std::uint64_t stream, std::vector<RowPlan>& rows) const;

  // Fills row `row` of the batch, which must be zeroed. `ids` are the plan's tokens, part after
  // part; `spans` the documents they come from; (seed, stream) decide masks and splits.
  void build_row(const RowPlan& plan, std::span<const std::int32_t> ids,
                 const std::vector<DocumentSpan>& spans, std::uint64_t seed, std::uint64_t stream,
                 Batch& batch, std::int64_t row) const;

 private:
  void add_ul2(const Tokenizer& tokenizer);
  void set_lengths(Denoiser& denoiser) const;
  void check_sentinels(const Tokenizer& tokenizer) const;
  void make_period();
  void build_denoised(const RowPlan& plan, std::span<const std::int32_t> ids, Rng& rng,
                      Batch& batch, std::int64_t row) const;
  void build_causal(std::span<const std::int32_t> ids, const std::vector<DocumentSpan>& spans,
                    Batch& batch, std::int64_t row) const;

  ObjectiveKind kind_;
  Packing packing_;
  std::int64_t length_;  // T
  std::int32_t first_sentinel_ = 0;
  std::vector<Denoiser> denoisers_;
  std::vector<int> whole_examples_;  // denoisers of a period's examples that take a row each
  std::vector<int> half_examples_;   // and of those that take half a row; an even number
  std::vector<RowPlan> period_;      // rows of a period in a fixed order
  std::int64_t tokens_per_period_ = 0;
};

}  // namespace openmoe
