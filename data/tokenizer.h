// Tokenizer: a SentencePiece model and T5's sentinels. Ids: pad 0, eos 1, unk 2; <extra_id_0> has
// the highest id, <extra_id_k> is k below it. umT5's and our sample's model files hold no
// sentinels: they are then appended after the pieces.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/unigram_encoder.h"

namespace openmoe {

class Tokenizer {
 public:
  static constexpr std::int32_t kPad = 0;  // also the id that starts each segment
  static constexpr std::int32_t kEos = 1;
  static constexpr std::int32_t kUnk = 2;
  static constexpr std::int64_t kSentinelsOfModel = -1;

  // `num_sentinels`: how many to append; kSentinelsOfModel: those of the model file, and 100 (T5's
  // number) if it has none. Throws UserError: unreadable file, other special ids, a number that
  // contradicts the model file.
  explicit Tokenizer(const std::string& model_path, std::int64_t num_sentinels = kSentinelsOfModel);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  std::int64_t vocab_size() const { return num_pieces_ + num_sentinels_; }  // ids in use
  std::int64_t num_pieces() const { return num_pieces_; }                   // without sentinels
  std::int64_t num_sentinels() const { return num_sentinels_; }
  std::int32_t sentinel(std::int64_t k) const {
    return static_cast<std::int32_t>(vocab_size() - 1 - k);
  }
  // SHA-256 of the model file's bytes and the number of sentinels: two shards fit together when it
  // is equal.
  const std::string& hash() const { return hash_; }
  const std::string& path() const { return path_; }

  // Appends the ids of `text` (valid UTF-8), without eos. Thread-safe, with a cache for each
  // thread; null: no cache.
  void encode(std::string_view text, std::vector<std::int32_t>& ids,
              WordCache* cache = nullptr) const;
  std::vector<std::int32_t> encode(std::string_view text) const;
  // Text of the ids; sentinels as <extra_id_k>, pad as nothing, eos as "</s>".
  std::string decode(std::span<const std::int32_t> ids) const;
  // SentencePiece's own encoder: the reference for encode(), and what it uses for models that
  // UnigramEncoder does not cover.
  void encode_by_library(std::string_view text, std::vector<std::int32_t>& ids) const;
  std::string piece(std::int32_t id) const;  // as stored: "▁the", "<0x0A>", "<extra_id_0>"

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  std::string path_;
  std::string hash_;
  std::int64_t num_pieces_ = 0;
  std::int64_t num_sentinels_ = 0;
};

}  // namespace openmoe
