#include "data/batch_stream.h"

#include <algorithm>
#include <deque>
#include <filesystem>
#include <limits>
#include <map>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/base/rng.h"
#include "core/config/recipe_io.h"
#include "data/document_stream.h"
#include "data/hash.h"
#include "data/objective.h"
#include "data/prefetcher.h"
#include "data/row_schedule.h"
#include "data/tokenizer.h"

namespace openmoe {
namespace {

// Validation rows are the same for every seed, so that runs can be compared.
constexpr std::uint64_t kValidationSeed = 0x76616c6964617465ULL;

// A source as one phase reads it: a stream, where the phase begins in it, and the plan of the
// period last asked for.
struct SourceCursor {
  std::size_t source = 0;  // index into Impl::names
  DocumentStream* stream = nullptr;
  std::int64_t begin = 0;  // stream offset of the phase's first example
  std::uint64_t key = 0;   // random stream of plans and masks
  std::int64_t planned_period = -1;
  std::vector<RowPlan> plan;
};

struct Phase {
  std::int64_t begin_step = 0;
  std::int64_t end_step = std::numeric_limits<std::int64_t>::max();
  const Objective* objective = nullptr;
  std::unique_ptr<RowSchedule> schedule;
  std::vector<SourceCursor> cursors;  // in the mixture's order
  bool is_placed = false;             // cursors' begins are known
};

struct Source {
  std::unique_ptr<SourceReader> train;
  std::unique_ptr<SourceReader> validation;  // null: no held-out documents
};

}  // namespace

struct BatchStream::Impl {
  Impl(const Recipe& recipe_in, const std::string& folder_in,
       const std::vector<Mixture>& mixtures_in)
      : recipe(recipe_in), folder(folder_in), mixtures(mixtures_in) {}

  Recipe recipe;
  std::string folder;
  std::vector<Mixture> mixtures;
  std::vector<std::string> names;
  std::vector<Source> sources;
  std::unique_ptr<Tokenizer> tokenizer;
  std::deque<Objective> objectives;  // one per phase; a deque keeps their addresses
  // By source, split and reading options.
  std::map<std::tuple<std::size_t, Split, bool, bool>, std::unique_ptr<DocumentStream>> streams;
  std::vector<Phase> phases;
  std::vector<std::int32_t> ids;  // scratch
  std::vector<DocumentSpan> spans;
  mutable std::mutex mutex;  // guards everything above after construction
  std::unique_ptr<Prefetcher> prefetcher;

  std::uint64_t seed() const { return static_cast<std::uint64_t>(recipe.run.seed); }
  void open_sources();
  void open_tokenizer();
  void make_phases();
  void place(std::size_t phase);
  DocumentStream& stream(std::size_t source, Split split, const DocumentStream::Options& options);
  std::size_t phase_index(std::int64_t step) const;
  std::int64_t tokens_taken(const Phase& phase, SourceCursor& cursor,
                            std::int64_t num_examples) const;
  const RowPlan& plan(const Phase& phase, SourceCursor& cursor, std::int64_t example,
                      std::uint64_t plan_seed) const;
  void build_example(const Phase& phase, SourceCursor& cursor, std::int64_t example,
                     std::uint64_t row_seed, Batch& batch, std::int64_t row);
  void build_row(std::int64_t step, std::int64_t global_row, Batch& batch, std::int64_t row,
                 RowOrigin* origin);
  void read(std::int64_t step, std::int64_t begin, std::int64_t end, Batch& batch);
};

void BatchStream::Impl::open_sources() {
  if (!std::filesystem::is_directory(folder))
    throw UserError(concat(folder,
                           ": no such data folder; make it with: openmoe prepare --tokenizer "
                           "M.model --input X.jsonl --out ",
                           folder));
  for (const Mixture& mixture : mixtures)
    for (const MixtureSource& entry : mixture.sources)
      if (std::find(names.begin(), names.end(), entry.name) == names.end())
        names.push_back(entry.name);
  for (const std::string& name : names) {
    Source source;
    source.train = std::make_unique<SourceReader>(folder, name, Split::train);
    if (source.train->num_tokens() == 0)
      throw UserError(concat("source \"", name, "\" in ", folder,
                             " is empty: its shards hold no training tokens"));
    source.validation = std::make_unique<SourceReader>(folder, name, Split::validation);
    if (source.validation->num_tokens() == 0) source.validation.reset();
    sources.push_back(std::move(source));
  }
}

void BatchStream::Impl::open_tokenizer() {
  const ShardHeader& header = sources.front().train->header();
  tokenizer =
      std::make_unique<Tokenizer>(folder + "/" + kTokenizerFile, header.tokenizer_sentinels);
  for (std::size_t s = 0; s < sources.size(); ++s) {
    const std::string& hash = sources[s].train->header().tokenizer_sha256;
    if (hash != tokenizer->hash())
      throw UserError(concat("source \"", names[s], "\" was prepared with another tokenizer (",
                             hash.substr(0, 12), "...) than ", tokenizer->path(), " with ",
                             header.tokenizer_sentinels, " sentinels (",
                             tokenizer->hash().substr(0, 12), "...); prepare it again"));
  }
  if (tokenizer->vocab_size() > recipe.model.vocab_size)
    throw UserError(concat("model.vocab_size is ", recipe.model.vocab_size,
                           ", but the data's tokenizer has ", tokenizer->vocab_size(), " ids (",
                           tokenizer->num_pieces(), " pieces and ", tokenizer->num_sentinels(),
                           " sentinels); set it to at least that"));
}

void BatchStream::Impl::make_phases() {
  const DataConfig& data = recipe.data;
  OPENMOE_CHECK(data.phases.size() == mixtures.size() && !mixtures.empty(), data.phases.size(),
                " phases, ", mixtures.size(), " mixtures");
  for (std::size_t p = 0; p < data.phases.size(); ++p) {
    const PhaseConfig& config = data.phases[p];
    Phase phase;
    phase.begin_step = first_step_of_phase(recipe, static_cast<std::int64_t>(p));
    if (p + 1 < data.phases.size())
      phase.end_step = first_step_of_phase(recipe, static_cast<std::int64_t>(p) + 1);
    objectives.emplace_back(config.objective, config.packing, data.sequence_length, *tokenizer);
    phase.objective = &objectives.back();
    std::vector<double> weights;
    for (const MixtureSource& entry : mixtures[p].sources) {
      // Every row of a source takes the same number of corpus tokens on average, so a share of
      // tokens becomes one of rows.
      const double unit =
          mixtures[p].unit == RateUnit::rows ? 1.0 : phase.objective->tokens_per_row();
      weights.push_back(entry.weight / unit);
      SourceCursor cursor;
      cursor.source = static_cast<std::size_t>(std::find(names.begin(), names.end(), entry.name) -
                                               names.begin());
      cursor.stream = &stream(cursor.source, Split::train, phase.objective->stream_options());
      cursor.key = stream_id("examples of " + entry.name, p);
      phase.cursors.push_back(std::move(cursor));
    }
    phase.schedule = std::make_unique<RowSchedule>(weights, seed(), stream_id("row schedule", p));
    phases.push_back(std::move(phase));
  }
}

DocumentStream& BatchStream::Impl::stream(std::size_t source, Split split,
                                          const DocumentStream::Options& options) {
  auto& entry = streams[{source, split, options.append_eos, options.one_piece_of_long}];
  if (entry == nullptr) {
    SourceReader& reader =
        split == Split::train ? *sources[source].train : *sources[source].validation;
    entry = std::make_unique<DocumentStream>(
        reader, split == Split::train ? seed() : kValidationSeed, options);
  }
  return *entry;
}

std::size_t BatchStream::Impl::phase_index(std::int64_t step) const {
  OPENMOE_CHECK(step >= 0, "step ", step);
  std::size_t p = 0;
  while (step >= phases[p].end_step) ++p;
  return p;
}

const RowPlan& BatchStream::Impl::plan(const Phase& phase, SourceCursor& cursor,
                                       std::int64_t example, std::uint64_t plan_seed) const {
  const std::int64_t period = example / phase.objective->rows_per_period();
  if (cursor.planned_period != period) {
    phase.objective->plan_period(
        plan_seed, stream_id("plan", cursor.key, static_cast<std::uint64_t>(period)), cursor.plan);
    cursor.planned_period = period;
  }
  return cursor.plan[static_cast<std::size_t>(example % phase.objective->rows_per_period())];
}

// Corpus tokens of the first `num_examples` examples.
std::int64_t BatchStream::Impl::tokens_taken(const Phase& phase, SourceCursor& cursor,
                                             std::int64_t num_examples) const {
  const RowPlan& next = plan(phase, cursor, num_examples, seed());
  return num_examples / phase.objective->rows_per_period() * phase.objective->tokens_per_period() +
         next.offset;
}

// A phase goes on in each source where the one before stopped, at the next whole document: no
// document comes twice in an epoch, although objectives differ in how they count tokens.
void BatchStream::Impl::place(std::size_t index) {
  Phase& phase = phases[index];
  if (phase.is_placed) return;
  if (index > 0) place(index - 1);
  for (SourceCursor& cursor : phase.cursors) {
    for (std::size_t earlier = index; earlier-- > 0;) {
      Phase& before = phases[earlier];
      const auto same =
          std::find_if(before.cursors.begin(), before.cursors.end(),
                       [&](const SourceCursor& other) { return other.source == cursor.source; });
      if (same == before.cursors.end()) continue;
      const std::int64_t rows = (before.end_step - before.begin_step) * recipe.data.batch_rows;
      const std::int64_t examples =
          before.schedule->rows_before(rows, same - before.cursors.begin());
      const std::int64_t end = same->begin + tokens_taken(before, *same, examples);
      cursor.begin = cursor.stream->offset_of(same->stream->place_at_or_after(end));
      break;
    }
  }
  phase.is_placed = true;
}

void BatchStream::Impl::build_example(const Phase& phase, SourceCursor& cursor,
                                      std::int64_t example, std::uint64_t row_seed, Batch& batch,
                                      std::int64_t row) {
  const Objective& objective = *phase.objective;
  const RowPlan& row_plan = plan(phase, cursor, example, row_seed);
  const std::int64_t offset =
      cursor.begin + example / objective.rows_per_period() * objective.tokens_per_period() +
      row_plan.offset;
  ids.clear();
  spans.clear();
  cursor.stream->read(offset, row_plan.tokens[0] + row_plan.tokens[1], ids, &spans);
  objective.build_row(row_plan, ids, spans, row_seed,
                      stream_id("example", cursor.key, static_cast<std::uint64_t>(example)), batch,
                      row);
  batch.row_sources[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(cursor.source);
}

void BatchStream::Impl::build_row(std::int64_t step, std::int64_t global_row, Batch& batch,
                                  std::int64_t row, RowOrigin* origin) {
  const std::size_t index = phase_index(step);
  place(index);
  Phase& phase = phases[index];
  const RowSchedule::Pick pick =
      phase.schedule->at((step - phase.begin_step) * recipe.data.batch_rows + global_row);
  SourceCursor& cursor = phase.cursors[static_cast<std::size_t>(pick.source)];
  build_example(phase, cursor, pick.example, seed(), batch, row);
  if (origin == nullptr) return;
  origin->source = names[cursor.source];
  const RowPlan& row_plan = plan(phase, cursor, pick.example, seed());
  for (int part = 0; part < row_plan.num_parts; ++part)
    origin->examples.push_back(
        phase.objective->denoisers()[static_cast<std::size_t>(row_plan.denoisers[part])].name);
  SourceReader& reader = *sources[cursor.source].train;
  for (const DocumentSpan& span : spans)
    origin->documents.push_back(
        {std::filesystem::path(reader.shard(span.shard).path()).filename().string(), span.document,
         span.epoch, span.first_token, span.count});
}

void BatchStream::Impl::read(std::int64_t step, std::int64_t begin, std::int64_t end,
                             Batch& batch) {
  OPENMOE_CHECK(0 <= begin && begin <= end && end <= recipe.data.batch_rows, "rows [", begin, ", ",
                end, ") of ", recipe.data.batch_rows);
  const std::lock_guard lock(mutex);
  batch.resize(end - begin, recipe.data.sequence_length);
  for (std::int64_t row = begin; row < end; ++row)
    build_row(step, row, batch, row - begin, nullptr);
}

BatchStream::BatchStream(const Recipe& recipe, const std::string& data_folder,
                         const std::vector<Mixture>& mixtures)
    : impl_(std::make_unique<Impl>(recipe, data_folder, mixtures)) {
  impl_->open_sources();
  impl_->open_tokenizer();
  impl_->make_phases();
  Impl* impl = impl_.get();
  impl_->prefetcher =
      std::make_unique<Prefetcher>([impl](const BatchRequest& request, Batch& batch) {
        impl->read(request.step, request.begin, request.end, batch);
      });
}

BatchStream::~BatchStream() = default;

void BatchStream::read(std::int64_t step, std::int64_t begin, std::int64_t end, Batch& batch) {
  if (!impl_->prefetcher->take({step, begin, end}, batch)) impl_->read(step, begin, end, batch);
}

void BatchStream::prefetch(std::int64_t step, std::int64_t begin, std::int64_t end) {
  impl_->prefetcher->start({step, begin, end});
}

std::vector<std::string> BatchStream::validation_sources(std::int64_t step) const {
  const std::lock_guard lock(impl_->mutex);
  std::vector<std::string> found;
  for (const SourceCursor& cursor : impl_->phases[impl_->phase_index(step)].cursors)
    if (impl_->sources[cursor.source].validation != nullptr)
      found.push_back(impl_->names[cursor.source]);
  return found;
}

void BatchStream::read_validation(std::int64_t step, const std::string& source, std::int64_t begin,
                                  std::int64_t end, Batch& batch) {
  const std::lock_guard lock(impl_->mutex);
  const auto index = static_cast<std::size_t>(
      std::find(impl_->names.begin(), impl_->names.end(), source) - impl_->names.begin());
  OPENMOE_CHECK(index < impl_->names.size() && impl_->sources[index].validation != nullptr,
                "validation source ", source);
  const Phase& phase = impl_->phases[impl_->phase_index(step)];
  SourceCursor cursor;
  cursor.source = index;
  cursor.stream = &impl_->stream(index, Split::validation, phase.objective->stream_options());
  cursor.key = stream_id("validation of " + source);
  batch.resize(end - begin, impl_->recipe.data.sequence_length);
  for (std::int64_t row = begin; row < end; ++row)
    impl_->build_example(phase, cursor, row, kValidationSeed, batch, row - begin);
}

std::string BatchStream::fingerprint() const {
  Sha256 hash;
  hash.update(impl_->tokenizer->hash());
  for (const Source& source : impl_->sources)
    hash.update(concat("\n", source.train->content_identity()));
  for (const Mixture& mixture : impl_->mixtures) {
    hash.update(concat("\n", mixture.name, mixture.unit == RateUnit::rows ? " rows" : " tokens"));
    for (const MixtureSource& entry : mixture.sources)
      hash.update(concat(" ", entry.name, "=", entry.weight));
  }
  return hash.finish();
}

const std::vector<std::string>& BatchStream::source_names() const {
  return impl_->names;
}

std::int64_t BatchStream::phase_of(std::int64_t step) const {
  return static_cast<std::int64_t>(impl_->phase_index(step));
}

std::int64_t BatchStream::phase_begin(std::int64_t phase) const {
  return impl_->phases[static_cast<std::size_t>(phase)].begin_step;
}

RowOrigin BatchStream::origin(std::int64_t step, std::int64_t row) {
  const std::lock_guard lock(impl_->mutex);
  Batch batch;
  batch.resize(1, impl_->recipe.data.sequence_length);
  RowOrigin origin;
  impl_->build_row(step, row, batch, 0, &origin);
  return origin;
}

std::vector<SourceProgress> BatchStream::progress(std::int64_t step) {
  const std::lock_guard lock(impl_->mutex);
  const std::size_t index = impl_->phase_index(step);
  impl_->place(index);
  Phase& phase = impl_->phases[index];
  const std::int64_t rows = (step - phase.begin_step) * impl_->recipe.data.batch_rows;
  std::vector<SourceProgress> found;
  for (std::size_t s = 0; s < phase.cursors.size(); ++s) {
    SourceCursor& cursor = phase.cursors[s];
    const std::int64_t examples = phase.schedule->rows_before(rows, static_cast<std::int64_t>(s));
    const std::int64_t offset = cursor.begin + impl_->tokens_taken(phase, cursor, examples);
    const std::int64_t epoch = cursor.stream->epoch_of(offset);
    const std::int64_t length = cursor.stream->epoch_tokens(epoch);
    const double part = static_cast<double>(offset - cursor.stream->epoch_begin(epoch)) /
                        static_cast<double>(length);
    found.push_back(
        {impl_->names[cursor.source], length, examples, static_cast<double>(epoch) + part});
  }
  return found;
}

const Tokenizer& BatchStream::tokenizer() const {
  return *impl_->tokenizer;
}

}  // namespace openmoe
