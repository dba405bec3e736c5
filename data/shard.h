// Shards: HDF5 files of tokenised documents, readable by h5py. The root has attributes:
//
//   format "openmoe-shard", format_version 1, tool_version, source,
//   settings                 options of `prepare` that decide the content, as JSON
//   tokenizer_sha256, tokenizer_pieces, tokenizer_sentinels, input_file, input_sha256
//   records_begin, records_end   range of the input's records, from 0
//   input_complete           1: the last shard of its input
//   duplicates_removed, empty_documents, skipped_records, text_bytes
//   chat                     1: conversations
//
// It holds /tags, strings: finer origins of documents (languages, RedPajama subsets; "" for none),
// and a group for each split, /train and /validation, with attribute index_checksum and:
//
//   tokens            (tokens) u16, or u32 when an id may exceed 65535; chunks of 65536
//   block_checksums   (chunks) u64: XXH3-64 of each chunk's ids, little endian, uncompressed
//   document_offsets  (documents + 1) i64: document d is tokens[offsets[d] : offsets[d + 1]]; no
//                     eos is stored
//   document_hashes   (documents, 2) u64: XXH3-128 of the text, high and low half
//   document_records  (documents) i64: number of the record in the input, from 0
//   document_tags     (documents) u16: index into /tags
//   part_offsets      (documents + 1) i64, chat only: document d has the parts part_offsets[d] to
//                     part_offsets[d + 1] - 1, alternating prompt, reply, prompt, reply, ...
//   part_ends         (parts) i64, chat only: where each part ends, in tokens of its document
//
// index_checksum is the XXH3-64, as 16 hex digits, of the XXH3-64 of document_offsets, _hashes,
// _records, _tags, part_offsets and part_ends, in this order.
//
// A shard is written under a temporary name and renamed when it is whole.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/hash.h"
#include "data/open_shards.h"

namespace openmoe {

inline constexpr std::int64_t kShardBlockTokens = 65536;
inline constexpr const char* kTokenizerFile =
    "tokenizer.model";  // copied beside the sources' folders

enum class Split { train, validation };
constexpr const char* name_of(Split split) {
  return split == Split::train ? "train" : "validation";
}

// What stands in the root attributes.
struct ShardHeader {
  std::string source;
  std::string
      settings;  // the options of `prepare` that decide the content; a continued run must match
  std::string tokenizer_sha256;
  std::int64_t tokenizer_pieces = 0;
  std::int64_t tokenizer_sentinels = 0;
  std::string input_file;
  std::string input_sha256;
  std::int64_t records_begin = 0;
  std::int64_t records_end = 0;
  bool input_complete = false;
  std::int64_t duplicates_removed = 0;
  std::int64_t empty_documents = 0;
  std::int64_t skipped_records = 0;
  std::int64_t text_bytes = 0;  // of the documents kept
  bool is_chat = false;

  std::int64_t vocab_size() const { return tokenizer_pieces + tokenizer_sentinels; }
};

class ShardWriter {
 public:
  // Writes `path` + ".tmp". deflate: gzip level, 0 for none.
  ShardWriter(const std::string& path, std::int64_t vocab_size, int deflate);
  ~ShardWriter();  // an unfinished shard is removed
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  // `part_ends`: chat only, the ends of the document's parts.
  void add(Split split, std::span<const std::int32_t> ids, const Hash128& hash, std::int64_t record,
           const std::string& tag, std::span<const std::int64_t> part_ends = {});
  std::int64_t num_tokens() const;
  // Writes indices and attributes, closes, renames. Throws RuntimeFault, e.g. when the disk is
  // full.
  void finish(const ShardHeader& header);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One split of one shard. Blocks are verified against their checksums when first read. Not
// thread-safe.
class ShardReader {
 public:
  // Opens and checks the header, the size and the document index. Throws UserError that names the
  // file and what is wrong with it (not a shard, truncated, damaged index). The file is then closed
  // until it is read. `open_shards` bounds the number of open files and must outlive this; null: no
  // bound.
  ShardReader(const std::string& path, Split split, OpenShards* open_shards = nullptr);
  ~ShardReader();
  ShardReader(ShardReader&&) noexcept;

  const std::string& path() const;
  const ShardHeader& header() const;
  std::int64_t num_documents() const;
  std::int64_t num_tokens() const;
  // Sum of all block checksums and the index checksum: identity of the split's content.
  std::uint64_t content_checksum() const;

  // offsets[i] of document `begin` + i, for i = 0 .. count (so count + 1 values).
  void read_offsets(std::int64_t begin, std::int64_t count, std::int64_t* offsets) const;
  // Ids of tokens [begin, end), appended. Throws RuntimeFault when the file became unreadable or a
  // block's checksum is wrong.
  void read_tokens(std::int64_t begin, std::int64_t end, std::vector<std::int32_t>& ids);

  // Chat shards: ends of the parts of a document, replacing `ends`; kept in memory.
  void read_parts(std::int64_t document, std::vector<std::int64_t>& ends) const;
  std::vector<Hash128> read_hashes() const;
  std::vector<std::int64_t> read_records() const;
  std::int64_t read_record(std::int64_t document) const;  // of one document
  std::string read_tag(std::int64_t document) const;
  std::vector<std::string> read_tags() const;  // one per document
  // Reads and verifies every block. Returns a description of each damaged one.
  std::vector<std::string> verify();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

ShardHeader read_shard_header(const std::string& path);  // throws UserError
// Paths of the shards of a source, sorted by name; empty when there are none.
std::vector<std::string> list_shards(const std::string& folder);

}  // namespace openmoe
