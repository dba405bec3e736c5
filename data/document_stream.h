// A source as an endless, randomly addressable stream of tokens: epoch after epoch, each a keyed
// permutation of the source's documents, concatenated. Offset -> tokens costs a binary search,
// never a replay.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/permutation.h"
#include "data/shard.h"

namespace openmoe {

// All shards of one source, one split. Documents are numbered through the shards in name order, and
// grouped into units: runs of consecutive documents of one shard that an epoch keeps together, so
// that memory stays bounded (at most 2^21 units). Below two million documents a unit is a single
// document.
class SourceReader {
 public:
  // Throws UserError: no shards, a damaged one, shards of several tokenizers. `open_shards`: as for
  // ShardReader; `max_units` is for tests.
  SourceReader(const std::string& folder, const std::string& name, Split split,
               OpenShards* open_shards = nullptr, std::int64_t max_units = std::int64_t{1} << 21);

  const std::string& name() const { return name_; }
  const ShardHeader& header() const {
    return shards_.front().header();
  }  // tokenizer: the same in all shards
  std::int64_t num_documents() const { return num_documents_; }
  std::int64_t num_tokens() const { return num_tokens_; }
  std::int64_t num_units() const { return static_cast<std::int64_t>(unit_tokens_.size()); }
  std::int64_t unit_tokens(std::int64_t unit) const {
    return unit_tokens_[static_cast<std::size_t>(unit)];
  }
  std::int64_t unit_documents(std::int64_t unit) const;
  std::string content_identity() const;  // of all shards

  // Where a unit stands: documents [first, first + count) of a shard, and their token offsets
  // (count + 1).
  struct Unit {
    std::int64_t shard = 0;
    std::int64_t first = 0;
    std::vector<std::int64_t> offsets;
  };
  void find_unit(std::int64_t unit, Unit& out) const;
  ShardReader& shard(std::int64_t index) { return shards_[static_cast<std::size_t>(index)]; }
  std::int64_t num_shards() const { return static_cast<std::int64_t>(shards_.size()); }

  // Documents longer than kLongDocument, by unit.
  static constexpr std::int64_t kLongDocument = 65536;
  struct LongDocument {
    std::int64_t unit = 0;
    std::int64_t document = 0;  // within the unit
    std::int64_t tokens = 0;
  };
  const std::vector<LongDocument>& long_documents() const { return long_documents_; }

 private:
  void add_shard(const std::string& path, Split split, OpenShards* open_shards);
  void build_units();

  std::string name_;
  std::vector<ShardReader> shards_;
  std::int64_t max_units_;
  std::int64_t documents_per_unit_ = 1;
  std::int64_t num_documents_ = 0;
  std::int64_t num_tokens_ = 0;
  std::vector<std::int64_t> unit_tokens_;
  std::vector<std::int64_t> shard_first_unit_;
  std::vector<LongDocument> long_documents_;
};

// A stretch of one document inside what was read.
struct DocumentSpan {
  std::int64_t shard = 0;
  std::int64_t document = 0;  // within the shard
  std::int64_t epoch = 0;
  std::int64_t first_token = 0;  // within the document
  std::int64_t count = 0;        // ids read, with the eos if one was appended
  bool ends = false;             // the document (or its piece) ends with this stretch
};

class DocumentStream {
 public:
  struct Options {
    bool append_eos = false;  // after each document
    // Of documents longer than SourceReader::kLongDocument, each epoch takes one aligned piece of
    // that length (the last may be shorter), as the original run did; otherwise the whole document.
    bool one_piece_of_long = false;
  };
  // `source` must outlive this.
  DocumentStream(SourceReader& source, std::uint64_t seed, const Options& options);

  // Appends `count` ids from stream offset `offset`; appends to `spans` unless null.
  void read(std::int64_t offset, std::int64_t count, std::vector<std::int32_t>& ids,
            std::vector<DocumentSpan>* spans);

  std::int64_t epoch_tokens(std::int64_t epoch);  // length of an epoch
  std::int64_t epoch_begin(std::int64_t epoch);   // offset of its first token
  std::int64_t epoch_of(std::int64_t offset);

  // A place between units, meaningful for every stream over the same source and seed, whatever its
  // options.
  struct Place {
    std::int64_t epoch = 0;
    std::int64_t unit_position = 0;  // in the epoch's order
  };
  Place place_at_or_after(
      std::int64_t offset);  // the first unit that begins at or after the offset
  std::int64_t offset_of(const Place& place);

 private:
  // Begin offsets of every kStride-th unit in the epoch's order.
  static constexpr std::int64_t kStride = 16;
  struct EpochTable {
    std::int64_t epoch = -1;
    std::unique_ptr<Permutation> order;
    std::vector<std::int64_t> begins;
  };

  EpochTable& table(std::int64_t epoch);
  std::int64_t unit_size(std::int64_t unit, std::int64_t epoch) const;
  // The piece of a document of `tokens` tokens that this epoch takes.
  struct Piece {
    std::int64_t begin = 0;
    std::int64_t count = 0;
  };
  Piece piece(std::int64_t unit, std::int64_t document, std::int64_t tokens,
              std::int64_t epoch) const;
  void read_unit(std::int64_t unit, std::int64_t epoch, std::int64_t skip, std::int64_t& wanted,
                 std::vector<std::int32_t>& ids, std::vector<DocumentSpan>* spans);
  std::int64_t find_position(EpochTable& epoch_table, std::int64_t& offset) const;

  SourceReader& source_;
  std::uint64_t seed_;
  std::uint64_t key_;  // of the source's name
  Options options_;
  bool constant_length_;  // every epoch has the same number of tokens
  std::int64_t constant_tokens_ = 0;
  std::vector<std::int64_t> epoch_begins_{0};
  EpochTable tables_[2];
  SourceReader::Unit unit_;  // scratch
};

}  // namespace openmoe
