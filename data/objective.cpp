#include "data/objective.h"

#include <algorithm>
#include <cmath>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/base/rng.h"
#include "data/denoising.h"
#include "data/permutation.h"

namespace openmoe {
namespace {

// Examples of a period when there are several denoisers: rates of a tenth come out exactly, also in
// halves of rows.
constexpr int kPeriodExamples = 160;
// A denoiser whose faithful example fills less of a row than this shares rows when packed.
constexpr double kHalfRowBelow = 0.75;

// Positions of one example of n corpus tokens: inputs and targets with their eos, sentinels and
// mode tag.
std::int64_t positions_of(const Denoiser& denoiser, std::int64_t n) {
  const auto tag = static_cast<std::int64_t>(denoiser.mode_tag.size());
  if (denoiser.kind == DenoiserKind::prefix_lm) return n + tag + 2;
  return n + 2 * num_noise_spans(n, denoiser.density, denoiser.mean_span) + tag + 2;
}

// The most corpus tokens whose example fits into `positions`.
std::int64_t tokens_that_fit(const Denoiser& denoiser, std::int64_t positions) {
  std::int64_t n = positions;
  while (n > 2 && positions_of(denoiser, n) > positions) --n;
  return n;
}

// Writes inputs ++ targets as one segment from position `begin`; the model's input is the row
// shifted right by one, 0 first.
void place_example(std::span<const std::int32_t> inputs, std::span<const std::int32_t> targets,
                   std::int64_t begin, std::int32_t segment, Batch& batch, std::int64_t row) {
  const auto at = static_cast<std::size_t>(row * batch.sequence_length + begin);
  const std::size_t length = inputs.size() + targets.size();
  std::copy(inputs.begin(), inputs.end(), batch.targets.begin() + static_cast<std::ptrdiff_t>(at));
  std::copy(targets.begin(), targets.end(),
            batch.targets.begin() + static_cast<std::ptrdiff_t>(at + inputs.size()));
  for (std::size_t i = 0; i < length; ++i) {
    batch.inputs[at + i] = i == 0 ? Tokenizer::kPad : batch.targets[at + i - 1];
    batch.loss_weights[at + i] = i < inputs.size() ? 0.0f : 1.0f;
    batch.segment_ids[at + i] = segment;
  }
}

}  // namespace

Objective::Objective(ObjectiveKind kind, Packing packing, std::int64_t sequence_length,
                     const Tokenizer& tokenizer)
    : kind_(kind),
      packing_(packing),
      length_(sequence_length),
      first_sentinel_(tokenizer.sentinel(0)) {
  if (kind == ObjectiveKind::causal_lm) {
    denoisers_.push_back({"causal LM", DenoiserKind::causal_lm, 0.0, 0.0, 1.0, {}, length_, 0});
  } else {
    if (length_ % 2 != 0 || length_ < 64)
      throw UserError(concat(
          "data.sequence_length is ", length_,
          "; denoising objectives need an even number of at least 64 (half inputs, half targets)"));
    if (kind == ObjectiveKind::ul2) add_ul2(tokenizer);
    if (kind == ObjectiveKind::span_corruption)
      denoisers_.push_back(
          {"span corruption mu=3 r=0.15", DenoiserKind::span_corruption, 3.0, 0.15, 1.0, {}, 0, 0});
    if (kind == ObjectiveKind::prefix_lm)
      denoisers_.push_back({"prefix LM", DenoiserKind::prefix_lm, 0.0, 0.5, 1.0, {}, 0, 0});
    for (Denoiser& denoiser : denoisers_) set_lengths(denoiser);
    check_sentinels(tokenizer);
  }
  make_period();
}

// Table 2 of the paper, with the mode texts of the code that ran.
void Objective::add_ul2(const Tokenizer& tokenizer) {
  const std::vector<std::int32_t> nlu = tokenizer.encode("[NLU] ");
  const std::vector<std::int32_t> nlg = tokenizer.encode("[NLG] ");
  const std::vector<std::int32_t> s2s = tokenizer.encode("[S2S] ");
  constexpr auto kSpan = DenoiserKind::span_corruption;
  denoisers_ = {{"UL2 span corruption mu=3 r=0.15", kSpan, 3.0, 0.15, 0.1, nlu, 0, 0},
                {"UL2 span corruption mu=8 r=0.15", kSpan, 8.0, 0.15, 0.1, nlu, 0, 0},
                {"UL2 span corruption mu=3 r=0.5", kSpan, 3.0, 0.5, 0.1, nlg, 0, 0},
                {"UL2 span corruption mu=8 r=0.5", kSpan, 8.0, 0.5, 0.1, nlg, 0, 0},
                {"UL2 span corruption mu=64 r=0.5", kSpan, 64.0, 0.5, 0.1, nlg, 0, 0},
                {"UL2 prefix LM", DenoiserKind::prefix_lm, 0.0, 0.5, 0.5, s2s, 0, 0}};
}

void Objective::set_lengths(Denoiser& denoiser) const {
  const std::int64_t half = length_ / 2;
  std::int64_t positions = 0;  // of a faithful example, before its mode tag
  if (denoiser.kind == DenoiserKind::prefix_lm) {
    denoiser.row_tokens = half - 1;
    positions = half + 1;
  } else {
    const SpanLengths lengths = span_corruption_lengths(half, denoiser.density, denoiser.mean_span);
    denoiser.row_tokens = lengths.raw_tokens;
    positions = lengths.inputs + lengths.targets;
  }
  if (packing_ == Packing::faithful) return;
  if (static_cast<double>(positions) < kHalfRowBelow * static_cast<double>(length_))
    denoiser.half_tokens = tokens_that_fit(denoiser, half);
  else
    denoiser.row_tokens = tokens_that_fit(denoiser, length_);
}

void Objective::check_sentinels(const Tokenizer& tokenizer) const {
  for (const Denoiser& denoiser : denoisers_) {
    if (denoiser.kind != DenoiserKind::span_corruption) continue;
    const std::int64_t tokens =
        denoiser.half_tokens > 0 ? denoiser.half_tokens : denoiser.row_tokens;
    const std::int64_t spans = num_noise_spans(tokens, denoiser.density, denoiser.mean_span);
    if (spans > tokenizer.num_sentinels())
      throw UserError(concat("data.sequence_length is ", length_, ": ", denoiser.name,
                             " then makes ", spans, " spans, but the tokenizer has ",
                             tokenizer.num_sentinels(),
                             " sentinels; prepare the data with --sentinels ", spans,
                             " or more, or shorten the sequence"));
  }
}

void Objective::make_period() {
  const int num_examples = denoisers_.size() > 1 ? kPeriodExamples : 2;
  for (std::size_t d = 0; d < denoisers_.size(); ++d) {
    const Denoiser& denoiser = denoisers_[d];
    const auto count = static_cast<std::size_t>(std::lround(denoiser.rate * num_examples));
    std::vector<int>& examples = denoiser.half_tokens > 0 ? half_examples_ : whole_examples_;
    examples.insert(examples.end(), count, static_cast<int>(d));
  }
  OPENMOE_CHECK(half_examples_.size() % 2 == 0, half_examples_.size(), " halves of rows");
  period_.resize(whole_examples_.size() + half_examples_.size() / 2);
  for (const int d : whole_examples_)
    tokens_per_period_ += denoisers_[static_cast<std::size_t>(d)].row_tokens;
  for (const int d : half_examples_)
    tokens_per_period_ += denoisers_[static_cast<std::size_t>(d)].half_tokens;
}

DocumentStream::Options Objective::stream_options() const {
  return {kind_ == ObjectiveKind::causal_lm, packing_ == Packing::faithful};
}

void Objective::plan_period(std::uint64_t seed, std::uint64_t stream,
                            std::vector<RowPlan>& rows) const {
  const auto num_rows = static_cast<std::int64_t>(period_.size());
  const auto num_whole = static_cast<std::int64_t>(whole_examples_.size());
  rows.assign(period_.size(), {});
  const Permutation row_order(num_rows, seed, stream_id("rows of a period", stream));
  const auto num_halves = static_cast<std::int64_t>(half_examples_.size());
  const Permutation half_order(std::max<std::int64_t>(1, num_halves), seed,
                               stream_id("halves of a period", stream));
  std::int64_t offset = 0;
  for (RowPlan& plan : rows) {
    const std::int64_t slot = row_order(&plan - rows.data());
    const auto add_part = [&](int denoiser, std::int64_t tokens) {
      plan.denoisers[plan.num_parts] = denoiser;
      plan.tokens[plan.num_parts++] = tokens;
    };
    plan.offset = offset;
    if (slot < num_whole) {
      const int d = whole_examples_[static_cast<std::size_t>(slot)];
      add_part(d, denoisers_[static_cast<std::size_t>(d)].row_tokens);
    } else {
      for (std::int64_t half = 0; half < 2; ++half) {
        const int d =
            half_examples_[static_cast<std::size_t>(half_order(2 * (slot - num_whole) + half))];
        add_part(d, denoisers_[static_cast<std::size_t>(d)].half_tokens);
      }
    }
    offset += plan.tokens[0] + plan.tokens[1];
  }
}

void Objective::build_row(const RowPlan& plan, std::span<const std::int32_t> ids,
                          const std::vector<DocumentSpan>& spans, std::uint64_t seed,
                          std::uint64_t stream, Batch& batch, std::int64_t row) const {
  if (kind_ == ObjectiveKind::causal_lm) {
    build_causal(ids, spans, batch, row);
  } else {
    Rng rng(seed, stream);
    build_denoised(plan, ids, rng, batch, row);
  }
}

void Objective::build_denoised(const RowPlan& plan, std::span<const std::int32_t> ids, Rng& rng,
                               Batch& batch, std::int64_t row) const {
  std::vector<std::int32_t> inputs;
  std::vector<std::int32_t> targets;
  std::vector<std::uint8_t> mask;
  for (int part = 0; part < plan.num_parts; ++part) {
    const Denoiser& denoiser = denoisers_[static_cast<std::size_t>(plan.denoisers[part])];
    const std::span<const std::int32_t> segment =
        ids.subspan(part == 0 ? 0 : static_cast<std::size_t>(plan.tokens[0]),
                    static_cast<std::size_t>(plan.tokens[part]));
    inputs = denoiser.mode_tag;
    targets.clear();
    if (denoiser.kind == DenoiserKind::prefix_lm) {
      const std::size_t split = 1 + rng.next_below(segment.size() - 1);
      inputs.insert(inputs.end(), segment.begin(),
                    segment.begin() + static_cast<std::ptrdiff_t>(split));
      targets.assign(segment.begin() + static_cast<std::ptrdiff_t>(split), segment.end());
    } else {
      draw_noise_mask(plan.tokens[part], denoiser.density, denoiser.mean_span, rng, mask);
      corrupt_spans(segment, mask, first_sentinel_, inputs, targets);
    }
    // The mode tag pushes full-length inputs over their half of the row; the original then lost
    // their end, with the last sentinel, to the eos. Packed examples were sized to fit.
    if (packing_ == Packing::faithful) {
      const auto limit = static_cast<std::size_t>(length_ / 2 - 1);
      inputs.resize(std::min(inputs.size(), limit));
      targets.resize(std::min(targets.size(), limit));
    }
    inputs.push_back(Tokenizer::kEos);
    targets.push_back(Tokenizer::kEos);
    place_example(inputs, targets, part * (length_ / 2), part + 1, batch, row);
  }
}

void Objective::build_causal(std::span<const std::int32_t> ids,
                             const std::vector<DocumentSpan>& spans, Batch& batch,
                             std::int64_t row) const {
  if (packing_ == Packing::faithful) {
    place_example({}, ids, 0, 1, batch, row);
    batch.targets[static_cast<std::size_t>((row + 1) * length_ - 1)] = Tokenizer::kEos;
    return;
  }
  std::int64_t begin = 0;
  std::int32_t segment = 0;
  for (const DocumentSpan& span : spans) {
    place_example(
        {}, ids.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(span.count)),
        begin, ++segment, batch, row);
    begin += span.count;
  }
}

}  // namespace openmoe
