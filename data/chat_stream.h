// A chat source as rows for supervised fine-tuning: whole conversations, packed into rows in the
// order of a keyed permutation, each its own segment, loss on replies. Row -> conversations costs a
// look-up in the epoch's table, which is made from lengths alone.
#pragma once

#include <cstdint>
#include <vector>

#include "core/batch.h"
#include "data/document_stream.h"

namespace openmoe {

class ChatStream {
 public:
  // Conversations longer than `sequence_length` are cut there; those whose first reply lies beyond
  // it are left out. Throws UserError when the source was not prepared with --chat or nothing is
  // left.
  ChatStream(SourceReader& source, std::uint64_t seed, std::int64_t sequence_length);

  std::int64_t epoch_of(std::int64_t row);
  std::int64_t epoch_begin(std::int64_t epoch);  // number of its first row
  double tokens_per_row();                       // means of the first epoch
  double loss_tokens_per_row();

  // Fills row `row` of the zeroed batch with stream row `stream_row`; appends to `spans` unless
  // null.
  void build_row(std::int64_t stream_row, Batch& batch, std::int64_t row,
                 std::vector<DocumentSpan>* spans);

 private:
  struct EpochTable {
    std::int64_t epoch = -1;
    std::vector<std::int64_t> documents;   // units in this epoch's order
    std::vector<std::int64_t> row_begins;  // index into documents of each row's first, and the end
  };
  EpochTable& table(std::int64_t epoch);
  std::int64_t length_of(std::int64_t unit) const {
    return std::min(source_.unit_tokens(unit), length_);
  }
  void add_conversation(std::int64_t unit, std::int64_t begin, std::int32_t segment, Batch& batch,
                        std::int64_t row);

  SourceReader& source_;
  std::uint64_t seed_;
  std::int64_t length_;
  std::vector<std::int64_t> usable_;  // units with a reply within the row
  std::vector<std::int64_t> epoch_begins_{0};
  EpochTable tables_[2];
  SourceReader::Unit unit_;  // scratch
  std::vector<std::int32_t> ids_;
  std::vector<std::int64_t> parts_;
};

}  // namespace openmoe
