#include "data/stream_plan.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/base/rng.h"
#include "core/config/recipe_io.h"
#include "data/hash.h"

namespace openmoe {
namespace {

// Held-out rows are the same for every seed, so that runs can be compared.
constexpr std::uint64_t kValidationSeed = 0x76616c6964617465ULL;
constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

std::vector<std::string> names_of(const Mixture& mixture) {
  std::vector<std::string> names;
  for (const MixtureSource& entry : mixture.sources) names.push_back(entry.name);
  return names;
}

void add_missing(std::vector<std::string>& names, const std::vector<std::string>& more) {
  for (const std::string& name : more)
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

}  // namespace

StreamPlan::StreamPlan(const Recipe& recipe, const std::string& folder,
                       const std::vector<Mixture>& mixtures)
    : recipe_(recipe), mixtures_(mixtures) {
  const std::vector<PhaseConfig>& phases = recipe_.data.phases;
  OPENMOE_CHECK(phases.size() == mixtures.size() && !mixtures.empty(), phases.size(), " phases, ",
                mixtures.size(), " mixtures");
  std::vector<std::string> names;
  for (std::size_t p = 0; p < phases.size(); ++p) {
    add_missing(names, names_of(mixtures[p]));
    if (!phases[p].extra_source.empty()) add_missing(names, {phases[p].extra_source});
  }
  data_ = std::make_unique<DataFolder>(folder, names);
  const Tokenizer& tokenizer = data_->tokenizer();
  if (tokenizer.vocab_size() > recipe.model.vocab_size)
    throw UserError(concat("model.vocab_size is ", recipe.model.vocab_size,
                           ", but the data's tokenizer has ", tokenizer.vocab_size(), " ids (",
                           tokenizer.num_pieces(), " pieces and ", tokenizer.num_sentinels(),
                           " sentinels); set it to at least that"));
  resolve_token_budgets(recipe_, tokenizer, [&](std::size_t p) { return chat_means(p); });
  for (std::size_t p = 0; p < phases.size(); ++p) add_phase(p);
}

// Of the phase's mixture; a blend or an extra source at its start is not counted.
RowMeans StreamPlan::chat_means(std::size_t phase) {
  const Mixture& mixture = mixtures_[phase];
  RowMeans sum;
  double rows = 0.0;
  for (const MixtureSource& entry : mixture.sources) {
    ChatStream& rows_of = chat(data_->index_of(entry.name), Split::train);
    const double real = rows_of.tokens_per_row();
    const double share = mixture.unit == RateUnit::tokens ? entry.weight / real : entry.weight;
    rows += share;
    sum.real_tokens += share * real;
    sum.loss_tokens += share * rows_of.loss_tokens_per_row();
  }
  return {sum.real_tokens / rows, sum.loss_tokens / rows};
}

// A phase is one stretch, or two when it begins with a blend or an extra source.
void StreamPlan::add_phase(std::size_t p) {
  const PhaseConfig& phase = recipe_.data.phases[p];
  const Mixture& mixture = mixtures_[p];
  const bool is_last = p + 1 == recipe_.data.phases.size();
  const std::int64_t begin = first_step_of_phase(recipe_, static_cast<std::int64_t>(p));
  const std::int64_t end =
      is_last ? kNever : first_step_of_phase(recipe_, static_cast<std::int64_t>(p) + 1);
  const std::int64_t head = std::max(phase.blend_steps, phase.extra_steps);
  if (end <= begin || (head > 0 && end - begin < head))
    throw UserError(concat(
        "data.phases[", p, "]: runs from step ", begin, " to ", end, ", too short",
        head > 0 ? concat(" for its first ", head, " steps (blend_steps or extra_steps)") : ""));
  if (phase.objective == ObjectiveKind::sft) {
    phase_objectives_.push_back(nullptr);
  } else {
    objectives_.emplace_back(phase.objective, phase.packing, recipe_.data.sequence_length,
                             data_->tokenizer());
    phase_objectives_.push_back(&objectives_.back());
  }
  const auto stream_of = [&](const char* name) { return stream_id(name, p); };
  const auto add = [&](Stretch stretch, std::int64_t from, std::int64_t to) {
    stretch.begin_step = from;
    stretch.end_step = to;
    stretches_.push_back(std::move(stretch));
  };
  if (head > 0) {
    std::vector<std::string> names = names_of(mixture);
    add_missing(names, phase.blend_steps > 0 ? names_of(mixtures_[p - 1])
                                             : std::vector<std::string>{phase.extra_source});
    Stretch stretch = make_stretch(p, names);
    stretch.last_shares = row_shares(stretch, mixture, names);
    if (phase.blend_steps > 0) {
      stretch.first_shares = row_shares(stretch, mixtures_[p - 1], names);
      stretch.schedule = std::make_unique<BlendSchedule>(stretch.first_shares, stretch.last_shares,
                                                         head, recipe_.data.batch_rows, seed(),
                                                         stream_of("blended rows"));
    } else {
      for (double& share : stretch.last_shares) share *= 1.0 - phase.extra_share;
      const auto extra = std::find(names.begin(), names.end(), phase.extra_source) - names.begin();
      stretch.last_shares[static_cast<std::size_t>(extra)] += phase.extra_share;
      stretch.first_shares = stretch.last_shares;
      stretch.schedule = std::make_unique<FixedSchedule>(stretch.last_shares, seed(),
                                                         stream_of("rows with an extra source"));
    }
    add(std::move(stretch), begin, begin + head);
  }
  if (begin + head == end) return;
  Stretch stretch = make_stretch(p, names_of(mixture));
  stretch.first_shares = stretch.last_shares = row_shares(stretch, mixture, names_of(mixture));
  stretch.schedule =
      std::make_unique<FixedSchedule>(stretch.last_shares, seed(), stream_of("row schedule"));
  add(std::move(stretch), begin + head, end);
}

StreamPlan::Stretch StreamPlan::make_stretch(std::size_t phase,
                                             const std::vector<std::string>& sources) {
  Stretch stretch;
  stretch.objective = phase_objectives_[phase];
  for (const std::string& name : sources) {
    Cursor cursor;
    cursor.source = data_->index_of(name);
    if (stretch.objective != nullptr)
      cursor.stream = &stream(cursor.source, Split::train, stretch.objective->stream_options());
    else
      cursor.chat = &chat(cursor.source, Split::train);
    cursor.key = stream_id("examples of " + name, stretches_.size());
    stretch.cursors.push_back(std::move(cursor));
  }
  return stretch;
}

// Shares of rows, adding up to 1, for `sources`; 0 for those the mixture does not name. A share of
// tokens is one of rows divided by the tokens that a row of the source takes; only chat rows differ
// in that.
std::vector<double> StreamPlan::row_shares(const Stretch& stretch, const Mixture& mixture,
                                           const std::vector<std::string>& sources) const {
  std::vector<double> weights(sources.size(), 0.0);
  double sum = 0.0;
  for (const MixtureSource& entry : mixture.sources) {
    const auto index = static_cast<std::size_t>(
        std::find(sources.begin(), sources.end(), entry.name) - sources.begin());
    const Cursor& cursor = stretch.cursors[index];
    double unit = 1.0;
    if (mixture.unit == RateUnit::tokens)
      unit = cursor.chat != nullptr ? cursor.chat->tokens_per_row()
                                    : stretch.objective->tokens_per_row();
    weights[index] = entry.weight / unit;
    sum += weights[index];
  }
  for (double& weight : weights) weight /= sum;
  return weights;
}

DocumentStream& StreamPlan::stream(std::size_t source, Split split,
                                   const DocumentStream::Options& options) {
  auto& entry = streams_[{source, split, options.append_eos, options.one_piece_of_long}];
  if (entry == nullptr) {
    const bool is_train = split == Split::train;
    entry = std::make_unique<DocumentStream>(
        is_train ? data_->train(source) : *data_->validation(source),
        is_train ? seed() : kValidationSeed, options);
  }
  return *entry;
}

ChatStream& StreamPlan::chat(std::size_t source, Split split) {
  auto& entry = chats_[{source, split}];
  if (entry == nullptr) {
    const bool is_train = split == Split::train;
    entry = std::make_unique<ChatStream>(
        is_train ? data_->train(source) : *data_->validation(source),
        is_train ? seed() : kValidationSeed, recipe_.data.sequence_length);
  }
  return *entry;
}

std::size_t StreamPlan::stretch_at(std::int64_t step) const {
  OPENMOE_CHECK(step >= 0, "step ", step);
  std::size_t index = 0;
  while (step >= stretches_[index].end_step) ++index;
  return index;
}

const RowPlan& StreamPlan::plan(const Objective& objective, Cursor& cursor, std::int64_t example,
                                std::uint64_t seed_of_plan) const {
  const std::int64_t period = example / objective.rows_per_period();
  if (cursor.planned_period != period) {
    objective.plan_period(seed_of_plan,
                          stream_id("plan", cursor.key, static_cast<std::uint64_t>(period)),
                          cursor.plan);
    cursor.planned_period = period;
  }
  return cursor.plan[static_cast<std::size_t>(example % objective.rows_per_period())];
}

// Where the source stands after the stretch's first `num_examples` examples of it: token offset, or
// row number for chat.
std::int64_t StreamPlan::end_of(const Stretch& stretch, Cursor& cursor,
                                std::int64_t num_examples) const {
  if (cursor.chat != nullptr) return cursor.begin + num_examples;
  const Objective& objective = *stretch.objective;
  const RowPlan& next = plan(objective, cursor, num_examples, seed());
  return cursor.begin + num_examples / objective.rows_per_period() * objective.tokens_per_period() +
         next.offset;
}

std::int64_t StreamPlan::examples_before(const Stretch& stretch, const Cursor& cursor,
                                         std::int64_t step) const {
  const std::int64_t steps = std::min(step, stretch.end_step) - stretch.begin_step;
  return stretch.schedule->rows_before(steps * recipe_.data.batch_rows,
                                       &cursor - stretch.cursors.data());
}

// A stretch goes on in each source where the last one that used it stopped, at the next whole
// document: no document comes twice in an epoch, although objectives count tokens differently.
void StreamPlan::place(std::size_t index) {
  Stretch& stretch = stretches_[index];
  if (stretch.is_placed) return;
  if (index > 0) place(index - 1);
  for (Cursor& cursor : stretch.cursors) {
    for (std::size_t earlier = index; earlier-- > 0;) {
      Stretch& before = stretches_[earlier];
      const auto same =
          std::find_if(before.cursors.begin(), before.cursors.end(), [&](const Cursor& other) {
            return other.source == cursor.source &&
                   (other.chat != nullptr) == (cursor.chat != nullptr);
          });
      if (same == before.cursors.end()) continue;
      const std::int64_t end =
          end_of(before, *same, examples_before(before, *same, before.end_step));
      cursor.begin = cursor.chat != nullptr ? end
                     : cursor.stream == same->stream
                         ? end
                         : cursor.stream->offset_of(same->stream->place_at_or_after(end));
      break;
    }
  }
  stretch.is_placed = true;
}

void StreamPlan::build_example(const Objective* objective, Cursor& cursor, std::int64_t example,
                               std::uint64_t seed_of_row, Batch& batch, std::int64_t row) {
  ids_.clear();
  spans_.clear();
  batch.row_sources[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(cursor.source);
  if (objective == nullptr) {
    cursor.chat->build_row(cursor.begin + example, batch, row, &spans_);
    return;
  }
  const RowPlan& row_plan = plan(*objective, cursor, example, seed_of_row);
  const std::int64_t offset =
      cursor.begin + example / objective->rows_per_period() * objective->tokens_per_period() +
      row_plan.offset;
  cursor.stream->read(offset, row_plan.tokens[0] + row_plan.tokens[1], ids_, &spans_);
  objective->build_row(row_plan, ids_, spans_, seed_of_row,
                       stream_id("example", cursor.key, static_cast<std::uint64_t>(example)), batch,
                       row);
}

void StreamPlan::build_row(std::int64_t step, std::int64_t global_row, Batch& batch,
                           std::int64_t row, RowOrigin* origin) {
  const std::size_t index = stretch_at(step);
  place(index);
  Stretch& stretch = stretches_[index];
  const RowSchedule::Pick pick =
      stretch.schedule->at((step - stretch.begin_step) * recipe_.data.batch_rows + global_row);
  Cursor& cursor = stretch.cursors[static_cast<std::size_t>(pick.source)];
  build_example(stretch.objective, cursor, pick.example, seed(), batch, row);
  if (origin == nullptr) return;
  origin->source = data_->names()[cursor.source];
  if (stretch.objective == nullptr) {
    origin->examples.push_back("supervised fine-tuning");
  } else {
    const RowPlan& row_plan = plan(*stretch.objective, cursor, pick.example, seed());
    for (int part = 0; part < row_plan.num_parts; ++part)
      origin->examples.push_back(
          stretch.objective->denoisers()[static_cast<std::size_t>(row_plan.denoisers[part])].name);
  }
  SourceReader& reader = data_->train(cursor.source);
  for (const DocumentSpan& span : spans_) {
    const ShardReader& shard = reader.shard(span.shard);
    RowOrigin::Document document;
    document.shard = std::filesystem::path(shard.path()).filename().string();
    document.document = span.document;
    document.input_file = shard.header().input_file;
    document.record = shard.read_record(span.document);
    document.tag = shard.read_tag(span.document);
    document.epoch = span.epoch;
    document.first_token = span.first_token;
    document.num_tokens = span.count;
    origin->documents.push_back(std::move(document));
  }
}

std::vector<std::string> StreamPlan::validation_sources(std::int64_t step) const {
  std::vector<std::string> found;
  for (const Cursor& cursor : stretches_[stretch_at(step)].cursors)
    if (data_->validation(cursor.source) != nullptr) found.push_back(data_->names()[cursor.source]);
  return found;
}

void StreamPlan::build_validation_row(std::int64_t step, const std::string& source,
                                      std::int64_t number, Batch& batch, std::int64_t row) {
  const Stretch& stretch = stretches_[stretch_at(step)];
  Cursor cursor;
  cursor.source = data_->index_of(source);
  OPENMOE_CHECK(data_->validation(cursor.source) != nullptr, "source ", source,
                " has no held-out documents");
  if (stretch.objective != nullptr)
    cursor.stream = &stream(cursor.source, Split::validation, stretch.objective->stream_options());
  else
    cursor.chat = &chat(cursor.source, Split::validation);
  cursor.key = stream_id("validation of " + source);
  build_example(stretch.objective, cursor, number, kValidationSeed, batch, row);
}

std::vector<SourceProgress> StreamPlan::progress(std::int64_t step) {
  std::vector<SourceProgress> found;
  for (const std::string& name : data_->names())
    found.push_back({name, data_->train(found.size()).num_tokens(), 0, 0.0});
  for (std::size_t index = 0; index < stretches_.size() && stretches_[index].begin_step < step;
       ++index) {
    place(index);
    Stretch& stretch = stretches_[index];
    for (Cursor& cursor : stretch.cursors) {
      const std::int64_t examples = examples_before(stretch, cursor, step);
      const std::int64_t end = end_of(stretch, cursor, examples);
      const auto epochs_at = [&](auto& stream) {
        const std::int64_t epoch = stream.epoch_of(end);
        const auto begin = stream.epoch_begin(epoch);
        const auto length = static_cast<double>(stream.epoch_begin(epoch + 1) - begin);
        return static_cast<double>(epoch) + static_cast<double>(end - begin) / length;
      };
      found[cursor.source].rows += examples;
      found[cursor.source].epochs =
          cursor.chat != nullptr ? epochs_at(*cursor.chat) : epochs_at(*cursor.stream);
    }
  }
  return found;
}

std::vector<double> StreamPlan::asked_shares(std::int64_t step) const {
  const Stretch& stretch = stretches_[stretch_at(step)];
  const auto steps = static_cast<double>(stretch.end_step - stretch.begin_step);
  const double part = (static_cast<double>(step - stretch.begin_step) + 0.5) / steps;
  std::vector<double> shares(data_->names().size(), 0.0);
  for (std::size_t c = 0; c < stretch.cursors.size(); ++c)
    shares[stretch.cursors[c].source] =
        (1.0 - part) * stretch.first_shares[c] + part * stretch.last_shares[c];
  return shares;
}

std::string StreamPlan::fingerprint() const {
  Sha256 hash;
  hash.update(data_->identity());
  for (const Mixture& mixture : mixtures_) {
    hash.update(concat("\n", mixture.name, mixture.unit == RateUnit::rows ? " rows" : " tokens"));
    for (const MixtureSource& entry : mixture.sources)
      hash.update(concat(" ", entry.name, "=", entry.weight));
  }
  return hash.finish();
}

}  // namespace openmoe
