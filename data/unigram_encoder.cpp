#include "data/unigram_encoder.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "data/hash.h"

namespace openmoe {
namespace {

constexpr std::string_view kWordStart = "\xe2\x96\x81";  // U+2581
constexpr float kUnknownPenalty = 10.0f;  // below the lowest score, as in SentencePiece

// Reader of the protocol-buffer wire format: fields of one message, one after the other.
class ProtoReader {
 public:
  explicit ProtoReader(std::string_view bytes) : bytes_(bytes) {}

  // False at the end and when the bytes are no message (see ok).
  bool next() {
    if (at_ == bytes_.size() || !ok_) return false;
    const std::uint64_t tag = varint();
    field = static_cast<int>(tag >> 3);
    switch (tag & 7) {
      case 0:
        number = varint();
        return ok_;
      case 1:
        return take(8);
      case 2:
        return take(varint());
      case 5:
        return take(4);
      default:
        return ok_ = false;
    }
  }
  bool ok() const { return ok_; }
  float as_float() const {
    float value = 0.0f;
    if (data.size() == sizeof value) std::memcpy(&value, data.data(), sizeof value);
    return value;
  }

  int field = 0;
  std::uint64_t number = 0;  // of varint fields
  std::string_view data;     // of the others

 private:
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at_ == bytes_.size()) break;
      const auto byte = static_cast<unsigned char>(bytes_[at_++]);
      value |= static_cast<std::uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
    ok_ = false;
    return 0;
  }
  bool take(std::uint64_t count) {
    if (!ok_ || count > bytes_.size() - at_) return ok_ = false;
    data = bytes_.substr(at_, static_cast<std::size_t>(count));
    at_ += static_cast<std::size_t>(count);
    return true;
  }

  std::string_view bytes_;
  std::size_t at_ = 0;
  bool ok_ = true;
};

enum class PieceType {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6
};

struct Piece {
  std::string_view text;
  float score = 0.0f;
  PieceType type = PieceType::normal;
};

// The parts of SentencePiece's ModelProto that decide whether and how this encoder works; numbers
// are its field numbers.
struct ModelFacts {
  std::vector<Piece> pieces;
  bool is_unigram = true;
  bool has_byte_fallback = false;
  bool suffix_mark = false;
  bool has_character_map = false;
  bool add_dummy_prefix = true;
  bool remove_extra_blanks = true;
  bool escape_blanks = true;
  bool ok = true;

  void read_piece(std::string_view bytes) {
    Piece piece;
    ProtoReader reader(bytes);
    while (reader.next()) {
      if (reader.field == 1) piece.text = reader.data;
      if (reader.field == 2) piece.score = reader.as_float();
      if (reader.field == 3) piece.type = static_cast<PieceType>(reader.number);
    }
    ok = ok && reader.ok();
    pieces.push_back(piece);
  }
  void read_trainer(std::string_view bytes) {
    ProtoReader reader(bytes);
    while (reader.next()) {
      if (reader.field == 3) is_unigram = reader.number == 1;
      if (reader.field == 24) suffix_mark = reader.number != 0;
      if (reader.field == 35) has_byte_fallback = reader.number != 0;
    }
    ok = ok && reader.ok();
  }
  void read_normalizer(std::string_view bytes) {
    ProtoReader reader(bytes);
    while (reader.next()) {
      if (reader.field == 2) has_character_map = !reader.data.empty();
      if (reader.field == 3) add_dummy_prefix = reader.number != 0;
      if (reader.field == 4) remove_extra_blanks = reader.number != 0;
      if (reader.field == 5) escape_blanks = reader.number != 0;
    }
    ok = ok && reader.ok();
  }
  explicit ModelFacts(std::string_view model) {
    ProtoReader reader(model);
    while (reader.next()) {
      if (reader.field == 1) read_piece(reader.data);
      if (reader.field == 2) read_trainer(reader.data);
      if (reader.field == 3) read_normalizer(reader.data);
    }
    ok = ok && reader.ok() && !pieces.empty();
  }
  bool fits() const {
    return ok && is_unigram && has_byte_fallback && !suffix_mark && !has_character_map &&
           !remove_extra_blanks && escape_blanks &&
           std::none_of(pieces.begin(), pieces.end(),
                        [](const Piece& piece) { return piece.type == PieceType::user_defined; });
  }
};

bool is_continuation(char byte) {
  return (static_cast<unsigned char>(byte) & 0xc0) == 0x80;
}

std::size_t character_bytes(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

// The word-start mark as a blank, so that it is one byte in text and pieces alike.
std::string with_blanks(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::size_t at = text.find(kWordStart);
    out.append(text.substr(0, at));
    if (at == std::string_view::npos) break;
    out += ' ';
    text.remove_prefix(at + kWordStart.size());
  }
  return out;
}

}  // namespace

std::optional<UnigramEncoder> UnigramEncoder::make(std::string_view model) {
  const ModelFacts facts(model);
  if (!facts.fits()) return std::nullopt;
  UnigramEncoder encoder;
  encoder.add_blank_ = facts.add_dummy_prefix;
  encoder.joined_.assign(256, std::vector<bool>(256, false));
  encoder.nodes_.emplace_back();
  encoder.edges_.resize(1 << 12);
  float lowest = std::numeric_limits<float>::max();
  int next_byte = 0;
  for (std::size_t i = 0; i < facts.pieces.size(); ++i) {
    const Piece& piece = facts.pieces[i];
    const auto id = static_cast<std::int32_t>(i);
    if (piece.type == PieceType::normal) {
      lowest = std::min(lowest, piece.score);
      encoder.add_piece(with_blanks(piece.text), id, piece.score);
    }
    if (piece.type == PieceType::byte && next_byte < 256)
      encoder.byte_ids_[next_byte++] = id;  // <0x00> to <0xFF>
  }
  if (next_byte != 256) return std::nullopt;
  encoder.unknown_score_ = lowest - kUnknownPenalty;
  return encoder;
}

void UnigramEncoder::grow_edges() {
  std::vector<Edge> old(edges_.size() * 2);
  old.swap(edges_);
  for (const Edge& edge : old) {
    if (edge.key == 0) continue;
    std::size_t slot =
        static_cast<std::size_t>(edge.key * 0x9e3779b97f4a7c15ULL >> 20) & (edges_.size() - 1);
    while (edges_[slot].key != 0) slot = (slot + 1) & (edges_.size() - 1);
    edges_[slot] = edge;
  }
}

std::uint32_t UnigramEncoder::child(std::uint32_t node, unsigned char byte) const {
  const std::uint64_t key = (static_cast<std::uint64_t>(node) << 8 | byte) + 1;
  std::size_t slot =
      static_cast<std::size_t>(key * 0x9e3779b97f4a7c15ULL >> 20) & (edges_.size() - 1);
  while (edges_[slot].key != key) {
    if (edges_[slot].key == 0) return 0;
    slot = (slot + 1) & (edges_.size() - 1);
  }
  return edges_[slot].child;
}

void UnigramEncoder::add_piece(std::string_view piece, std::int32_t id, float score) {
  std::uint32_t node = 0;
  for (std::size_t i = 0; i < piece.size(); ++i) {
    const auto byte = static_cast<unsigned char>(piece[i]);
    if (i > 0 && !is_continuation(piece[i]))
      joined_[static_cast<unsigned char>(piece[i - 1])][byte] = true;
    std::uint32_t next = child(node, byte);
    if (next == 0) {
      if (2 * ++num_edges_ > edges_.size()) grow_edges();
      next = static_cast<std::uint32_t>(nodes_.size());
      nodes_.emplace_back();
      const std::uint64_t key = (static_cast<std::uint64_t>(node) << 8 | byte) + 1;
      std::size_t slot =
          static_cast<std::size_t>(key * 0x9e3779b97f4a7c15ULL >> 20) & (edges_.size() - 1);
      while (edges_[slot].key != 0) slot = (slot + 1) & (edges_.size() - 1);
      edges_[slot] = {key, next};
    }
    node = next;
  }
  if (node != 0) nodes_[node] = {id, score};
}

// Viterbi search over the word; the same comparisons in the same order as SentencePiece.
void UnigramEncoder::encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
  struct Best {
    std::int32_t begin = -1;
    std::int32_t id = -1;  // -1: unknown character
    float score = 0.0f;
  };
  constexpr std::size_t kInline = 64;
  Best inline_best[kInline + 1];
  std::vector<Best> long_best;
  if (word.size() > kInline) long_best.resize(word.size() + 1);
  Best* best = word.size() > kInline ? long_best.data() : inline_best;
  for (std::size_t begin = 0; begin < word.size();) {
    const std::size_t width = std::min(character_bytes(word[begin]), word.size() - begin);
    const float before = best[begin].score;
    bool single = false;
    const auto offer = [&](std::size_t end, std::int32_t id, float score) {
      Best& target = best[end];
      if (target.begin == -1 || score > target.score)
        target = {static_cast<std::int32_t>(begin), id, score};
    };
    std::uint32_t node = 0;
    for (std::size_t end = begin; end < word.size();) {
      node = child(node, static_cast<unsigned char>(word[end++]));
      if (node == 0) break;
      if (nodes_[node].id < 0) continue;
      offer(end, nodes_[node].id, nodes_[node].score + before);
      single = single || end - begin == width;
    }
    if (!single) offer(begin + width, -1, unknown_score_ + before);
    begin += width;
  }
  const std::size_t first = ids.size();
  for (std::size_t end = word.size(); end > 0;) {
    const Best& step = best[end];
    const auto begin = static_cast<std::size_t>(step.begin);
    if (step.id >= 0) {
      ids.push_back(step.id);
    } else if (word[begin] ==
               ' ') {  // a blank that is no piece of its own: the bytes of the word-start mark
      for (std::size_t i = kWordStart.size(); i-- > 0;)
        ids.push_back(byte_ids_[static_cast<unsigned char>(kWordStart[i])]);
    } else {
      for (std::size_t i = end; i-- > begin;)
        ids.push_back(byte_ids_[static_cast<unsigned char>(word[i])]);
    }
    end = begin;
  }
  std::reverse(ids.begin() + static_cast<std::ptrdiff_t>(first), ids.end());
}

void UnigramEncoder::encode(std::string_view text, std::vector<std::int32_t>& ids,
                            WordCache* cache) const {
  if (text.empty()) return;
  std::string copy;
  if (add_blank_ || text.find(kWordStart) != std::string_view::npos) {
    copy = with_blanks(text);
    if (add_blank_) copy.insert(copy.begin(), ' ');
    text = copy;
  }
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = begin + 1;
    while (end < text.size() &&
           (is_continuation(text[end]) || !may_cut(static_cast<unsigned char>(text[end - 1]),
                                                   static_cast<unsigned char>(text[end]))))
      ++end;
    const std::string_view word = text.substr(begin, end - begin);
    begin = end;
    if (cache == nullptr || word.size() > WordCache::kMaxBytes) {
      encode_word(word, ids);
      continue;
    }
    WordCache::Entry& entry =
        cache->entries_[xxh3_64(word.data(), word.size()) & (WordCache::kEntries - 1)];
    if (entry.num_bytes == word.size() && std::memcmp(entry.bytes, word.data(), word.size()) == 0) {
      ids.insert(ids.end(), entry.ids, entry.ids + entry.num_ids);
      continue;
    }
    const std::size_t first = ids.size();
    encode_word(word, ids);
    if (ids.size() - first > WordCache::kMaxIds) continue;
    entry.num_bytes = static_cast<std::uint8_t>(word.size());
    entry.num_ids = static_cast<std::uint8_t>(ids.size() - first);
    std::memcpy(entry.bytes, word.data(), word.size());
    std::copy(ids.begin() + static_cast<std::ptrdiff_t>(first), ids.end(), entry.ids);
  }
}

}  // namespace openmoe
