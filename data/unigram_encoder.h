// UnigramEncoder: SentencePiece's unigram segmentation (Kudo 2018), word by word and with a cache
// of words.
//
// The text is cut wherever no piece of the vocabulary contains the two characters on both sides of
// the cut; a segmentation can then not cross it, so the best segmentation of the whole is that of
// the parts. Words repeat, so most parts are found in the cache. Ids are those of
// SentencePieceProcessor::Encode, except that its single-precision sum over a whole document may
// round a near tie differently in documents of many thousand words.
//
// Only for models where this holds: type unigram, identity normaliser that keeps white space, byte
// fallback, no user-defined pieces. Tokenizer falls back to SentencePiece for others.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace openmoe {

// Words seen by one thread, direct-mapped.
class WordCache {
 public:
  WordCache() : entries_(kEntries) {}

 private:
  friend class UnigramEncoder;
  static constexpr std::size_t kEntries = std::size_t{1} << 16;
  static constexpr std::size_t kMaxBytes = 26;
  static constexpr std::size_t kMaxIds = 9;
  struct alignas(64) Entry {
    std::uint8_t num_bytes = 0;  // 0: free
    std::uint8_t num_ids = 0;
    char bytes[kMaxBytes] = {};
    std::int32_t ids[kMaxIds] = {};
  };
  static_assert(sizeof(Entry) == 64);
  std::vector<Entry> entries_;
};

class UnigramEncoder {
 public:
  // `model`: bytes of a SentencePiece .model file. Empty when the model is of another kind or
  // cannot be parsed.
  static std::optional<UnigramEncoder> make(std::string_view model);

  // Appends the ids of valid UTF-8 `text`. `cache` belongs to the calling thread and to this
  // encoder; null: no cache.
  void encode(std::string_view text, std::vector<std::int32_t>& ids, WordCache* cache) const;

 private:
  UnigramEncoder() = default;
  void add_piece(std::string_view piece, std::int32_t id, float score);
  void grow_edges();
  std::uint32_t child(std::uint32_t node, unsigned char byte) const;
  bool may_cut(unsigned char before, unsigned char after) const { return !joined_[before][after]; }
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const;

  // Prefix tree of the pieces, with the word-start mark as one blank. Edges are an open-addressing
  // table of (node << 8 | byte) + 1 -> child; node 0 is the root.
  struct Edge {
    std::uint64_t key = 0;
    std::uint32_t child = 0;
  };
  struct Node {
    std::int32_t id = -1;  // of the piece that ends here
    float score = 0.0f;
  };
  std::vector<Edge> edges_;
  std::size_t num_edges_ = 0;
  std::vector<Node> nodes_;
  std::vector<std::vector<bool>>
      joined_;  // [a][b]: a piece holds a character ending in byte a before one beginning with b
  std::int32_t byte_ids_[256] = {};
  float unknown_score_ = 0.0f;
  bool add_blank_ = true;  // before the text
};

}  // namespace openmoe
