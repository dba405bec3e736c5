#include "data/prepare.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <thread>
#include <unordered_set>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/chat.h"
#include "data/durable_files.h"
#include "data/ordered_pipeline.h"
#include "data/record_reader.h"
#include "data/shard.h"
#include "data/tokenizer.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

// Small enough to balance workers, large enough that queueing costs nothing.
constexpr std::size_t kBatchBytes = 1 << 20;
constexpr std::size_t kBatchRecords = 256;
constexpr std::size_t kReportedProblems = 20;

struct HashOfHash {
  std::size_t operator()(const Hash128& hash) const { return hash.low; }
};

// One document of a batch; its ids are ids[begin, end) of the batch.
struct TokenizedDocument {
  std::size_t begin = 0;
  std::size_t end = 0;
  std::int64_t text_bytes = 0;
  Hash128 hash;
  std::string tag;
  std::vector<std::int64_t> part_ends;  // chat only
  std::string problem;                  // with its place; the document is then empty
};

struct RecordBatch {
  std::int64_t first_record = 0;
  std::int64_t stored_bytes = 0;  // read of the input when the batch was full
  std::vector<RawRecord> records;
};

struct TokenizedBatch {
  std::int64_t first_record = 0;
  std::int64_t stored_bytes = 0;
  std::vector<std::int32_t> ids;
  std::vector<TokenizedDocument> documents;
};

struct PlannedInput {
  std::string source;
  InputInfo info;
};

class Preparation {
 public:
  Preparation(const PrepareOptions& options,
              const std::function<void(const PrepareProgress&)>& progress)
      : options_(options),
        progress_(progress),
        tokenizer_(options.tokenizer, options.num_sentinels) {}

  PrepareReport run();

 private:
  void plan_inputs();
  void install_tokenizer();
  void load_known_hashes();
  std::string settings() const;
  void run_input(const PlannedInput& input);
  std::int64_t reuse_shards(const PlannedInput& input, ShardHeader& header, int& num_shards);
  bool fill_batch(RecordReader& reader, RecordBatch& batch, std::int64_t& next_record) const;
  TokenizedBatch tokenize(RecordBatch& batch);
  std::unique_ptr<WordCache> borrow_cache();
  void write(const TokenizedBatch& batch, ShardWriter& writer, ShardHeader& header);
  void finish_shard(std::unique_ptr<ShardWriter>& writer, ShardHeader& header, bool complete);
  PrepareSourceReport& report_of(const std::string& source);

  const PrepareOptions& options_;
  const std::function<void(const PrepareProgress&)>& progress_;
  Tokenizer tokenizer_;
  std::vector<PlannedInput> inputs_;
  std::unordered_set<Hash128, HashOfHash> known_;
  PrepareReport report_;
  PrepareProgress now_;
  PrepareCounts shard_counts_;  // of the shard being written
  std::mutex cache_mutex_;
  std::vector<std::unique_ptr<WordCache>> idle_caches_;
};

std::string shard_path(const PrepareOptions& options, const PlannedInput& input, int number) {
  char ending[16];
  std::snprintf(ending, sizeof ending, "-%05d.h5", number);
  return options.out + "/" + input.source + "/" + input.info.stem + ending;
}

void add_counts(PrepareCounts& sum, const PrepareCounts& part) {
  for (int split = 0; split < 2; ++split) {
    sum.documents[split] += part.documents[split];
    sum.tokens[split] += part.tokens[split];
  }
  sum.text_bytes += part.text_bytes;
  sum.duplicates_removed += part.duplicates_removed;
  sum.empty_documents += part.empty_documents;
  sum.skipped_records += part.skipped_records;
  sum.shards += part.shards;
}

PrepareSourceReport& Preparation::report_of(const std::string& source) {
  const auto found =
      std::find_if(report_.sources.begin(), report_.sources.end(),
                   [&](const PrepareSourceReport& entry) { return entry.source == source; });
  if (found != report_.sources.end()) return *found;
  report_.sources.push_back({source, {}, 0});
  return report_.sources.back();
}

void Preparation::plan_inputs() {
  std::map<std::string, std::string> owner;  // shard name without number -> input
  for (const PrepareInput& given : options_.inputs) {
    for (const InputInfo& info : list_inputs(given.path)) {
      PlannedInput input{given.source.empty() ? info.stem : given.source, info};
      if (input.source.empty() || input.source[0] == '.' ||
          input.source.find('/') != std::string::npos)
        throw UserError(
            concat("source name \"", input.source, "\": must be usable as a folder name"));
      const auto [entry, is_new] = owner.try_emplace(input.source + "/" + info.stem, info.path);
      if (!is_new)
        throw UserError(concat(info.path, " and ", entry->second, " would write the same shards ",
                               input.source, "/", info.stem,
                               "-*.h5; give one of them a source of its own (--source NAME=FILE)"));
      inputs_.push_back(std::move(input));
    }
  }
  if (inputs_.empty()) throw UserError("prepare: no input; give --input or --source");
}

// The data folder keeps its tokenizer, so that training needs nothing else and cannot use another.
void Preparation::install_tokenizer() {
  std::error_code error;
  fs::create_directories(options_.out, error);
  if (error)
    throw UserError(concat(options_.out, ": the data folder cannot be made: ", error.message()));
  const std::string target = options_.out + "/" + kTokenizerFile;
  if (fs::exists(target)) {
    if (sha256_file(target) != sha256_file(tokenizer_.path()))
      throw UserError(concat(options_.out, ": was prepared with another tokenizer than ",
                             tokenizer_.path(), "; use that one (", target, ") or another --out"));
    return;
  }
  const std::string temporary = concat(target, ".", options_.world_rank, ".tmp");
  fs::copy_file(tokenizer_.path(), temporary, fs::copy_options::overwrite_existing, error);
  if (!error) fs::permissions(temporary, fs::perms::owner_write, fs::perm_options::add, error);
  if (error) throw UserError(concat(target, ": cannot be written: ", error.message()));
  publish_file(temporary, target);
}

void Preparation::load_known_hashes() {
  for (const auto& entry : fs::directory_iterator(options_.out)) {
    if (!entry.is_directory()) continue;
    for (const std::string& path : list_shards(entry.path().string()))
      for (const Split split : {Split::train, Split::validation})
        for (const Hash128& hash : ShardReader(path, split).read_hashes()) known_.insert(hash);
  }
}

// Everything but the inputs that decides what a shard holds.
std::string Preparation::settings() const {
  const nlohmann::json json = {{"chat", options_.chat},
                               {"text_field", options_.text_field},
                               {"validation_fraction", options_.validation_fraction},
                               {"max_record_bytes", options_.max_record_bytes},
                               {"shard_tokens", options_.shard_tokens},
                               {"deflate", options_.deflate},
                               {"skip_bad_records", options_.skip_bad_records},
                               {"remove_duplicates", options_.remove_duplicates}};
  return json.dump();
}

// Counts the whole shards of an earlier run and returns the number of records they cover; `header`
// becomes the last one's.
std::int64_t Preparation::reuse_shards(const PlannedInput& input, ShardHeader& header,
                                       int& num_shards) {
  const ShardHeader wanted = header;
  std::int64_t records = 0;
  for (num_shards = 0;; ++num_shards) {
    const std::string path = shard_path(options_, input, num_shards);
    if (!fs::exists(path)) return records;
    header = read_shard_header(path);
    const auto require = [&](const std::string& what, const std::string& found,
                             const std::string& now) {
      if (found != now)
        throw UserError(concat(path, ": exists already with another ", what, ": ", found,
                               "; now asked for: ", now, ". Remove the folder ", options_.out, "/",
                               input.source, " or use another --out"));
    };
    require("tokenizer (SHA-256 of model and sentinels)", header.tokenizer_sha256,
            wanted.tokenizer_sha256);
    require("input content (SHA-256)", header.input_sha256, wanted.input_sha256);
    require("set of options", header.settings, wanted.settings);
    if (header.records_begin != records)
      throw UserError(concat(path, ": begins at record ", header.records_begin,
                             ", the shard before it ends at ", records, "; remove the folder ",
                             options_.out, "/", input.source));
    records = header.records_end;
    PrepareSourceReport& report = report_of(input.source);
    PrepareCounts counts;
    for (const Split split : {Split::train, Split::validation}) {
      const ShardReader reader(path, split);
      counts.documents[static_cast<int>(split)] = reader.num_documents();
      counts.tokens[static_cast<int>(split)] = reader.num_tokens();
    }
    counts.text_bytes = header.text_bytes;
    counts.duplicates_removed = header.duplicates_removed;
    counts.empty_documents = header.empty_documents;
    counts.skipped_records = header.skipped_records;
    counts.shards = 1;
    add_counts(report.counts, counts);
    ++report.reused_shards;
  }
}

bool Preparation::fill_batch(RecordReader& reader, RecordBatch& batch,
                             std::int64_t& next_record) const {
  batch.first_record = next_record;
  std::size_t bytes = 0;
  RawRecord record;
  while (bytes < kBatchBytes && batch.records.size() < kBatchRecords && reader.next(record)) {
    bytes += record.bytes.size();
    batch.records.push_back(std::move(record));
  }
  next_record += static_cast<std::int64_t>(batch.records.size());
  batch.stored_bytes = reader.bytes_read();
  return !batch.records.empty();
}

TokenizedBatch Preparation::tokenize(RecordBatch& batch) {
  TokenizedBatch out;
  out.first_record = batch.first_record;
  out.stored_bytes = batch.stored_bytes;
  std::unique_ptr<WordCache> cache = borrow_cache();
  Document document;
  std::vector<std::string> parts;
  for (const RawRecord& record : batch.records) {
    TokenizedDocument entry;
    entry.begin = out.ids.size();
    std::int64_t bad_offset = 0;
    const std::string reason =
        options_.chat ? parse_chat(record, document, parts, bad_offset)
                      : parse_document(record, options_.text_field, document, bad_offset);
    if (!reason.empty()) {
      entry.problem = concat(record.file, ": line ", record.line, ", byte offset ",
                             record.offset + bad_offset, ": ", reason);
    } else {
      entry.text_bytes = static_cast<std::int64_t>(document.text.size());
      entry.hash = xxh3_128(document.text);
      entry.tag = document.tag;
      if (!options_.chat) parts = {std::move(document.text)};
      for (const std::string& part : parts) {
        tokenizer_.encode(part, out.ids, cache.get());
        if (options_.chat)
          entry.part_ends.push_back(static_cast<std::int64_t>(out.ids.size() - entry.begin));
      }
    }
    entry.end = out.ids.size();
    out.documents.push_back(std::move(entry));
  }
  const std::lock_guard lock(cache_mutex_);
  idle_caches_.push_back(std::move(cache));
  return out;
}

// A worker keeps a cache for the time of one batch.
std::unique_ptr<WordCache> Preparation::borrow_cache() {
  const std::lock_guard lock(cache_mutex_);
  if (idle_caches_.empty()) return std::make_unique<WordCache>();
  std::unique_ptr<WordCache> cache = std::move(idle_caches_.back());
  idle_caches_.pop_back();
  return cache;
}

void Preparation::write(const TokenizedBatch& batch, ShardWriter& writer, ShardHeader& header) {
  std::int64_t record = batch.first_record;
  for (const TokenizedDocument& document : batch.documents) {
    const std::int64_t number = record++;
    if (!document.problem.empty()) {
      if (!options_.skip_bad_records)
        throw UserError(document.problem +
                        ". --skip-bad-records leaves such records out and counts them");
      ++shard_counts_.skipped_records;
      if (report_.skipped.size() < kReportedProblems) report_.skipped.push_back(document.problem);
      continue;
    }
    if (document.begin == document.end) {
      ++shard_counts_.empty_documents;
      continue;
    }
    if (options_.remove_duplicates && !known_.insert(document.hash).second) {
      ++shard_counts_.duplicates_removed;
      continue;
    }
    // By content, so that copies of a text never stand on both sides.
    const double place = static_cast<double>(document.hash.high >> 11) * 0x1p-53;
    const Split split = place < options_.validation_fraction ? Split::validation : Split::train;
    const std::span<const std::int32_t> ids(batch.ids.data() + document.begin,
                                            document.end - document.begin);
    writer.add(split, ids, document.hash, number, document.tag, document.part_ends);
    ++shard_counts_.documents[static_cast<int>(split)];
    shard_counts_.tokens[static_cast<int>(split)] += static_cast<std::int64_t>(ids.size());
    shard_counts_.text_bytes += document.text_bytes;
    ++now_.documents;
    now_.tokens += static_cast<std::int64_t>(ids.size());
  }
  header.records_end = record;
}

void Preparation::finish_shard(std::unique_ptr<ShardWriter>& writer, ShardHeader& header,
                               bool complete) {
  header.input_complete = complete;
  header.duplicates_removed = shard_counts_.duplicates_removed;
  header.empty_documents = shard_counts_.empty_documents;
  header.skipped_records = shard_counts_.skipped_records;
  header.text_bytes = shard_counts_.text_bytes;
  writer->finish(header);
  writer.reset();
  shard_counts_.shards = 1;
  add_counts(report_of(header.source).counts, shard_counts_);
  shard_counts_ = {};
  header.records_begin = header.records_end;
}

void Preparation::run_input(const PlannedInput& input) {
  fs::create_directories(options_.out + "/" + input.source);
  ShardHeader header;
  header.source = input.source;
  header.settings = settings();
  header.is_chat = options_.chat;
  header.tokenizer_sha256 = tokenizer_.hash();
  header.tokenizer_pieces = tokenizer_.num_pieces();
  header.tokenizer_sentinels = tokenizer_.num_sentinels();
  header.input_file = input.info.path;
  header.input_sha256 = sha256_input(input.info);
  int num_shards = 0;
  ShardHeader last = header;
  const std::int64_t done_records = reuse_shards(input, last, num_shards);
  report_of(input.source);
  const std::int64_t bytes_before = now_.stored_bytes_done;
  if (num_shards > 0 && last.input_complete) {
    now_.stored_bytes_done = bytes_before + input.info.bytes;
    return;
  }
  header.records_begin = header.records_end = done_records;

  const std::unique_ptr<RecordReader> reader = open_input(input.info, options_.max_record_bytes);
  std::int64_t next_record = 0;
  for (RawRecord skipped; next_record < done_records && reader->next(skipped);) ++next_record;

  const auto open_shard = [&] {
    return std::make_unique<ShardWriter>(shard_path(options_, input, num_shards++),
                                         tokenizer_.vocab_size(), options_.deflate);
  };
  std::unique_ptr<ShardWriter> writer = open_shard();
  now_.source = input.source;
  const int num_threads = options_.num_threads > 0
                              ? options_.num_threads
                              : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  run_ordered<RecordBatch, TokenizedBatch>(
      num_threads, [&](RecordBatch& batch) { return fill_batch(*reader, batch, next_record); },
      [&](RecordBatch& batch) { return tokenize(batch); },
      [&](TokenizedBatch& batch) {
        if (writer->num_tokens() >= options_.shard_tokens) {
          finish_shard(writer, header, false);
          writer = open_shard();
        }
        write(batch, *writer, header);
        now_.stored_bytes_done = bytes_before + batch.stored_bytes;
        if (progress_) progress_(now_);
      });
  finish_shard(writer, header, true);
  now_.stored_bytes_done = bytes_before + input.info.bytes;
  if (progress_) progress_(now_);
}

PrepareReport Preparation::run() {
  const auto start = std::chrono::steady_clock::now();
  plan_inputs();
  install_tokenizer();
  const auto is_mine = [&](std::size_t index) {
    return options_.remove_duplicates
               ? options_.world_rank == 0
               : static_cast<std::int64_t>(index) % options_.world_size == options_.world_rank;
  };
  for (std::size_t i = 0; i < inputs_.size(); ++i)
    if (is_mine(i)) now_.stored_bytes_total += inputs_[i].info.bytes;
  if (options_.remove_duplicates && options_.world_rank == 0) load_known_hashes();
  for (std::size_t i = 0; i < inputs_.size(); ++i)
    if (is_mine(i)) run_input(inputs_[i]);
  report_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return std::move(report_);
}

}  // namespace

PrepareReport prepare(const PrepareOptions& options,
                      const std::function<void(const PrepareProgress&)>& progress) {
  if (!(options.validation_fraction >= 0.0 && options.validation_fraction < 1.0))
    throw UserError(concat("--validation-fraction is ", options.validation_fraction,
                           "; it must be at least 0 and below 1"));
  if (options.deflate < 0 || options.deflate > 9)
    throw UserError(concat("--deflate is ", options.deflate, "; gzip levels are 0 (none) to 9"));
  if (options.max_record_bytes < 1 || options.shard_tokens < 1)
    throw UserError("prepare: record and shard limits must be positive");
  return Preparation(options, progress).run();
}

}  // namespace openmoe
