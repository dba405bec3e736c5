// Audit of a data folder: is every shard whole, what do the sources hold, which documents are there
// twice, how do two tokenizers compare on them, and what does a stretch of training really read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/batch_stream.h"

namespace openmoe {

struct SourceAudit {
  std::string source;
  std::int64_t shards = 0;
  std::int64_t documents[2] = {0, 0};  // by Split
  std::int64_t tokens[2] = {0, 0};
  std::int64_t text_bytes = 0;
  std::int64_t duplicates_inside = 0;   // documents whose text came before in this source
  std::int64_t duplicates_outside = 0;  // and those whose text came in a source before it
  std::int64_t removed_duplicates = 0;  // by prepare
  std::int64_t skipped_records = 0;
  bool is_complete = true;            // the last shard of each input says that it is the last
  std::vector<std::string> problems;  // damaged blocks and indices, gaps between shards
};

// Every source of the folder, in name order. Reads all tokens. Throws UserError when there is none.
std::vector<SourceAudit> audit_sources(const std::string& data_folder);

// Tokens and distinct ids of one source under a tokenizer (the paper's Table 10).
struct TokenizerUse {
  std::string source;
  std::string tag;                  // finer origin; empty: all of the source
  std::int64_t tokens[2] = {0, 0};  // own tokenizer, the other
  std::int64_t distinct_ids[2] = {0, 0};
};
// Training documents, decoded and encoded again with the other model. Per source, and per tag where
// a source has several.
std::vector<TokenizerUse> compare_tokenizers(const std::string& data_folder,
                                             const std::string& other_model);

// What the steps [begin, end) read.
struct RealisedMixture {
  std::int64_t rows = 0;
  std::int64_t positions = 0;
  std::int64_t real_tokens = 0;
  std::int64_t loss_tokens = 0;
  std::vector<std::int64_t> source_rows;  // in the order of the stream's source_names
  std::vector<double> asked_rows;         // as the mixtures ask, rows in expectation
};
RealisedMixture read_mixture(BatchStream& stream, std::int64_t begin, std::int64_t end);

}  // namespace openmoe
