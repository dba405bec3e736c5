// StudyText: documents cut into rows for the study of a router, each token with the document it
// comes from. Rows are those of causal training: the documents of one source one after the other,
// eos between them, an input being the target before it and id 0 at the start of a row; attention
// crosses documents, as in the original's language-model phase.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/batch.h"
#include "core/routing/trace.h"
#include "data/hash.h"
#include "data/shard.h"
#include "data/tokenizer.h"

namespace openmoe {

struct StudyDocument {
  std::vector<std::int32_t> ids;
  std::string tag;
  Hash128 hash;  // of its text: documents are read in this order, which no place in a file decides
};

// A source's documents and how many positions of it are read.
struct StudySource {
  std::string name;
  std::vector<StudyDocument> documents;
  std::int64_t positions = 0;
};

// Documents of `split` of the sources below a folder of shards, all of them when `names` is empty;
// sources without such documents are left out. `tokenizer_sha256`: of the model that is to read
// them, "": any. Throws UserError: nothing there, shards of another tokenizer or of different ones,
// a name without a folder.
std::vector<StudySource> read_study_shards(const std::string& folder,
                                           const std::vector<std::string>& names, Split split,
                                           const std::string& tokenizer_sha256);
// One input of JSON Lines or text (record_reader.h), tokenised. Throws UserError for an unusable
// record.
StudySource read_study_file(const std::string& name, const std::string& path,
                            const Tokenizer& tokenizer);

class StudyText {
 public:
  // Rows of `length` positions; at most `positions` of each source, its documents by their hash,
  // and no more than the first `document_positions` of one document; 0: all of it.
  StudyText(const std::vector<StudySource>& sources, std::int64_t length,
            std::int64_t document_positions = 0);

  std::int64_t num_rows() const {
    return static_cast<std::int64_t>(trace_.sequence_sources.size());
  }
  std::int64_t length() const { return length_; }
  // Everything but the layers: sequences are rows, token ids the inputs.
  const RoutingTrace& trace() const { return trace_; }
  // Rows [begin, end) of the source of row `begin`, then padding up to `rows`.
  void fill(Batch& batch, std::int64_t begin, std::int64_t end, std::int64_t rows) const;
  // First rows of the blocks of at most `rows` that do not cross sources.
  std::vector<std::int64_t> blocks(std::int64_t rows) const;
  std::int64_t end_of_block(std::int64_t begin, std::int64_t rows) const;

 private:
  void add_source(const StudySource& source, std::int64_t document_positions);

  std::int64_t length_;
  RoutingTrace trace_;
  std::vector<std::int32_t> targets_;  // (N)
};

}  // namespace openmoe
