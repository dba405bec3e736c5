// BatchStream: the global batch of a step as a pure function of (recipe, data folder, seed, step).
// A rank asks for the rows it computes; nothing depends on ranks, prefetching or restarts, and any
// step can be had without the steps before it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/batch.h"
#include "core/config/mixture.h"
#include "core/config/recipe.h"

namespace openmoe {

class Tokenizer;

// Where a row comes from.
struct RowOrigin {
  std::string source;
  std::vector<std::string>
      examples;  // name of the denoiser of each, by segment; one name for causal rows
  struct Document {
    std::string shard;          // file name
    std::int64_t document = 0;  // within the shard's split
    std::string input_file;     // that prepare read
    std::int64_t record = 0;    // in that file, from 0
    std::string tag;            // language or subset; may be empty
    std::int64_t epoch = 0;
    std::int64_t first_token = 0;  // within the document
    std::int64_t num_tokens =
        0;  // taken into this row, with the eos if one was put after the document
  };
  std::vector<Document> documents;
};

struct SourceProgress {
  std::string source;
  std::int64_t corpus_tokens = 0;  // of its training documents
  std::int64_t rows = 0;           // given so far
  double epochs = 0.0;             // passes over the documents so far
};

class BatchStream {
 public:
  // Opens every source that any phase needs. `mixtures` in phase order. Throws UserError: missing
  // source or shard, shard of another tokenizer, truncated shard, ids beyond the model's
  // vocabulary, empty source.
  BatchStream(const Recipe& recipe, const std::string& data_folder,
              const std::vector<Mixture>& mixtures);
  ~BatchStream();
  BatchStream(const BatchStream&) = delete;
  BatchStream& operator=(const BatchStream&) = delete;

  // Rows [begin, end) of the global batch of `step`.
  void read(std::int64_t step, std::int64_t begin, std::int64_t end, Batch& batch);

  // Held-out rows of one source under the objective of `step`'s phase: rows [begin, end) of
  // `validation_rows`. They do not depend on the recipe's seed. Sources without held-out documents
  // are not listed.
  std::vector<std::string> validation_sources(std::int64_t step) const;
  void read_validation(std::int64_t step, const std::string& source, std::int64_t begin,
                       std::int64_t end, Batch& batch);

  // Starts fetching (step, begin, end) on the prefetch thread; the next read of the same rows waits
  // for it.
  void prefetch(std::int64_t step, std::int64_t begin, std::int64_t end);

  // Identity of the data: hash over tokenizer, shards and mixtures, stored in checkpoints; a
  // resumed run must match.
  std::string fingerprint() const;
  const std::vector<std::string>& source_names() const;  // index = Batch::row_sources

  std::int64_t phase_of(std::int64_t step) const;  // index into the recipe's phases
  std::int64_t phase_begin(std::int64_t phase) const;
  RowOrigin origin(std::int64_t step, std::int64_t row);
  // What the steps before `step` took from each source, in the order of source_names.
  std::vector<SourceProgress> progress(std::int64_t step);
  // Shares of the rows that the mixture asks for at a step, in the order of source_names.
  std::vector<double> asked_shares(std::int64_t step) const;
  const Tokenizer& tokenizer() const;
  // The recipe with ends of phases in tokens turned into steps (token_budget.h).
  const Recipe& recipe() const;
  std::size_t num_open_shards() const;  // at most OpenShards::kLimit

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace openmoe
