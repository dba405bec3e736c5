// prepare: documents -> tokens -> shards. One folder per source below the data folder; see shard.h
// for the files. The result depends on inputs and settings only, never on the number of threads; a
// killed run continues after its last whole shard.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace openmoe {

struct PrepareInput {
  std::string source;  // empty: the input's stem
  std::string path;    // file or folder, see list_inputs
};

struct PrepareOptions {
  std::string tokenizer;            // SentencePiece .model file
  std::int64_t num_sentinels = -1;  // -1: those of the model file, else 100
  std::vector<PrepareInput> inputs;
  std::string out;                    // data folder; may hold other sources
  std::string text_field;             // empty: text, content or conversation
  double validation_fraction = 0.01;  // of the documents, by hash of their text
  std::int64_t max_record_bytes = std::int64_t{8} << 20;
  std::int64_t shard_tokens = std::int64_t{1}
                              << 27;  // a shard is closed after the batch that passes this
  int deflate = 0;                    // gzip level of the tokens; 0: none, fastest to train from
  bool skip_bad_records = false;      // count them instead of stopping at the first
  bool remove_duplicates =
      false;            // keep the first of documents with the same text, over all sources
  int num_threads = 0;  // 0: all cores of this process
  // Inputs are dealt to the ranks of a job in turn; with remove_duplicates the first rank does all.
  std::int64_t world_rank = 0;
  std::int64_t world_size = 1;
};

struct PrepareCounts {
  std::int64_t documents[2] = {0, 0};  // by Split
  std::int64_t tokens[2] = {0, 0};
  std::int64_t text_bytes = 0;
  std::int64_t duplicates_removed = 0;
  std::int64_t empty_documents = 0;
  std::int64_t skipped_records = 0;
  std::int64_t shards = 0;
};

struct PrepareSourceReport {
  std::string source;
  PrepareCounts counts;            // of all its shards that these inputs account for
  std::int64_t reused_shards = 0;  // found whole from an earlier run
};

struct PrepareReport {
  std::vector<PrepareSourceReport> sources;
  std::vector<std::string>
      skipped;  // "file:line (byte offset): reason" of the first skipped records
  double seconds = 0.0;
};

struct PrepareProgress {
  std::string source;
  std::int64_t stored_bytes_done = 0;  // over all inputs of this rank
  std::int64_t stored_bytes_total = 0;
  std::int64_t documents = 0;
  std::int64_t tokens = 0;
};

// Throws UserError: unreadable input or tokenizer, another tokenizer or other settings than those
// of shards already there, a bad record (unless skipped). `progress` may be empty.
PrepareReport prepare(const PrepareOptions& options,
                      const std::function<void(const PrepareProgress&)>& progress);

}  // namespace openmoe
