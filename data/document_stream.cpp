#include "data/document_stream.h"

#include <algorithm>
#include <optional>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/base/rng.h"

namespace openmoe {

SourceReader::SourceReader(const std::string& folder, const std::string& name, Split split,
                           OpenShards* open_shards, std::int64_t max_units)
    : name_(name), max_units_(max_units) {
  const std::vector<std::string> paths = list_shards(folder + "/" + name);
  if (paths.empty())
    throw UserError(concat("source \"", name, "\": no shards (*.h5) in ", folder, "/", name,
                           "; prepare it with: openmoe prepare --source ", name,
                           "=FILE.jsonl --out ", folder));
  for (const std::string& path : paths) add_shard(path, split, open_shards);
  build_units();
}

void SourceReader::add_shard(const std::string& path, Split split, OpenShards* open_shards) {
  shards_.emplace_back(path, split, open_shards);
  const ShardHeader& first = shards_.front().header();
  const ShardHeader& header = shards_.back().header();
  if (header.tokenizer_sha256 != first.tokenizer_sha256)
    throw UserError(concat(path, ": was made with another tokenizer (",
                           header.tokenizer_sha256.substr(0, 12), "...) than ",
                           shards_.front().path(), " (", first.tokenizer_sha256.substr(0, 12),
                           "...); prepare all sources with one tokenizer"));
  num_documents_ += shards_.back().num_documents();
  num_tokens_ += shards_.back().num_tokens();
}

void SourceReader::build_units() {
  while (num_documents_ / documents_per_unit_ > max_units_) documents_per_unit_ *= 2;
  std::vector<std::int64_t> offsets;
  constexpr std::int64_t kStep = std::int64_t{1} << 16;
  for (const ShardReader& shard : shards_) {
    shard_first_unit_.push_back(num_units());
    for (std::int64_t begin = 0; begin < shard.num_documents();) {
      const std::int64_t step =
          std::min(shard.num_documents() - begin, std::max(kStep, documents_per_unit_));
      // Whole units, except at the shard's end.
      const std::int64_t count = begin + step == shard.num_documents()
                                     ? step
                                     : step / documents_per_unit_ * documents_per_unit_;
      offsets.resize(static_cast<std::size_t>(count) + 1);
      shard.read_offsets(begin, count, offsets.data());
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t tokens =
            offsets[static_cast<std::size_t>(i) + 1] - offsets[static_cast<std::size_t>(i)];
        if (i % documents_per_unit_ == 0) unit_tokens_.push_back(0);
        unit_tokens_.back() += tokens;
        if (tokens > kLongDocument)
          long_documents_.push_back({num_units() - 1, i % documents_per_unit_, tokens});
      }
      begin += count;
    }
  }
  shard_first_unit_.push_back(num_units());
}

std::int64_t SourceReader::unit_documents(std::int64_t unit) const {
  const auto next = std::upper_bound(shard_first_unit_.begin(), shard_first_unit_.end(), unit);
  const auto index = next - shard_first_unit_.begin() - 1;
  const std::int64_t first =
      (unit - shard_first_unit_[static_cast<std::size_t>(index)]) * documents_per_unit_;
  return std::min(documents_per_unit_,
                  shards_[static_cast<std::size_t>(index)].num_documents() - first);
}

void SourceReader::find_unit(std::int64_t unit, Unit& out) const {
  const auto next = std::upper_bound(shard_first_unit_.begin(), shard_first_unit_.end(), unit);
  out.shard = next - shard_first_unit_.begin() - 1;
  const ShardReader& shard = shards_[static_cast<std::size_t>(out.shard)];
  out.first = (unit - shard_first_unit_[static_cast<std::size_t>(out.shard)]) * documents_per_unit_;
  const std::int64_t count = std::min(documents_per_unit_, shard.num_documents() - out.first);
  out.offsets.resize(static_cast<std::size_t>(count) + 1);
  shard.read_offsets(out.first, count, out.offsets.data());
}

std::string SourceReader::content_identity() const {
  std::string identity = name_;
  for (const ShardReader& shard : shards_)
    identity +=
        concat(" ", shard.num_documents(), ":", shard.num_tokens(), ":", shard.content_checksum());
  return identity;
}

DocumentStream::DocumentStream(SourceReader& source, std::uint64_t seed, const Options& options)
    : source_(source), seed_(seed), key_(stream_id(source.name())), options_(options) {
  constant_length_ = !options.one_piece_of_long || source.long_documents().empty();
  constant_tokens_ = source.num_tokens() + (options.append_eos ? source.num_documents() : 0);
  OPENMOE_CHECK(source.num_tokens() > 0, "source ", source.name(), " is empty");
}

DocumentStream::Piece DocumentStream::piece(std::int64_t unit, std::int64_t document,
                                            std::int64_t tokens, std::int64_t epoch) const {
  constexpr std::int64_t kLimit = SourceReader::kLongDocument;
  if (!options_.one_piece_of_long || tokens <= kLimit) return {0, tokens};
  const std::int64_t num_pieces = (tokens + kLimit - 1) / kLimit;
  const Rng rng(seed_,
                stream_id("piece of a long document", key_, static_cast<std::uint64_t>(epoch)));
  const std::uint64_t bits =
      rng.bits_at((static_cast<std::uint64_t>(unit) << 20) ^ static_cast<std::uint64_t>(document));
  const std::int64_t begin =
      static_cast<std::int64_t>(bits % static_cast<std::uint64_t>(num_pieces)) * kLimit;
  return {begin, std::min(kLimit, tokens - begin)};
}

std::int64_t DocumentStream::unit_size(std::int64_t unit, std::int64_t epoch) const {
  std::int64_t size =
      source_.unit_tokens(unit) + (options_.append_eos ? source_.unit_documents(unit) : 0);
  if (constant_length_) return size;
  const auto& all = source_.long_documents();
  auto found =
      std::lower_bound(all.begin(), all.end(), unit,
                       [](const auto& entry, std::int64_t value) { return entry.unit < value; });
  for (; found != all.end() && found->unit == unit; ++found)
    size += piece(unit, found->document, found->tokens, epoch).count - found->tokens;
  return size;
}

std::int64_t DocumentStream::epoch_tokens(std::int64_t epoch) {
  std::int64_t tokens = constant_tokens_;
  if (constant_length_) return tokens;
  for (const auto& entry : source_.long_documents())
    tokens += piece(entry.unit, entry.document, entry.tokens, epoch).count - entry.tokens;
  return tokens;
}

std::int64_t DocumentStream::epoch_begin(std::int64_t epoch) {
  if (constant_length_) return epoch * constant_tokens_;
  while (static_cast<std::int64_t>(epoch_begins_.size()) <= epoch)
    epoch_begins_.push_back(epoch_begins_.back() +
                            epoch_tokens(static_cast<std::int64_t>(epoch_begins_.size()) - 1));
  return epoch_begins_[static_cast<std::size_t>(epoch)];
}

std::int64_t DocumentStream::epoch_of(std::int64_t offset) {
  if (constant_length_) return offset / constant_tokens_;
  while (epoch_begins_.back() <= offset)
    epoch_begin(static_cast<std::int64_t>(epoch_begins_.size()));
  const auto next = std::upper_bound(epoch_begins_.begin(), epoch_begins_.end(), offset);
  return next - epoch_begins_.begin() - 1;
}

DocumentStream::EpochTable& DocumentStream::table(std::int64_t epoch) {
  EpochTable& entry = tables_[epoch % 2];
  if (entry.epoch == epoch) return entry;
  entry.order = std::make_unique<Permutation>(
      source_.num_units(), seed_,
      stream_id("document order", key_, static_cast<std::uint64_t>(epoch)));
  entry.begins.clear();
  std::int64_t begin = 0;
  for (std::int64_t position = 0; position < source_.num_units(); ++position) {
    if (position % kStride == 0) entry.begins.push_back(begin);
    begin += unit_size((*entry.order)(position), epoch);
  }
  entry.epoch = epoch;
  OPENMOE_CHECK(begin == epoch_tokens(epoch), "epoch ", epoch, " of ", source_.name());
  return entry;
}

// The unit that holds the epoch's token `offset`, which becomes the offset within that unit.
std::int64_t DocumentStream::find_position(EpochTable& epoch_table, std::int64_t& offset) const {
  const auto next = std::upper_bound(epoch_table.begins.begin(), epoch_table.begins.end(), offset);
  const auto index = next - epoch_table.begins.begin() - 1;
  std::int64_t position = index * kStride;
  offset -= epoch_table.begins[static_cast<std::size_t>(index)];
  for (;;) {
    const std::int64_t size = unit_size((*epoch_table.order)(position), epoch_table.epoch);
    if (offset < size) return position;
    offset -= size;
    ++position;
  }
}

// Appends up to `wanted` ids of the unit after its first `skip`, and lowers `wanted` by as many.
void DocumentStream::read_unit(std::int64_t unit, std::int64_t epoch, std::int64_t skip,
                               std::int64_t& wanted, std::vector<std::int32_t>& ids,
                               std::vector<DocumentSpan>* spans) {
  constexpr std::int32_t kEos = 1;
  source_.find_unit(unit, unit_);
  const auto count = static_cast<std::int64_t>(unit_.offsets.size()) - 1;
  std::optional<Permutation> order;
  if (count > 1)
    order.emplace(count, seed_,
                  stream_id("order within a unit", key_ ^ static_cast<std::uint64_t>(unit),
                            static_cast<std::uint64_t>(epoch)));
  for (std::int64_t i = 0; i < count && wanted > 0; ++i) {
    const std::int64_t document = order ? (*order)(i) : i;
    const std::int64_t begin = unit_.offsets[static_cast<std::size_t>(document)];
    const std::int64_t tokens = unit_.offsets[static_cast<std::size_t>(document) + 1] - begin;
    const Piece part = piece(unit, document, tokens, epoch);
    const std::int64_t size = part.count + (options_.append_eos ? 1 : 0);
    if (skip >= size) {
      skip -= size;
      continue;
    }
    const std::int64_t take = std::min(wanted, size - skip);
    const std::int64_t text = std::min(take, part.count - skip);  // the rest is the eos
    const std::int64_t from = begin + part.begin + skip;
    if (text > 0) source_.shard(unit_.shard).read_tokens(from, from + text, ids);
    if (take > text) ids.push_back(kEos);
    if (spans != nullptr)
      spans->push_back({unit_.shard, unit_.first + document, epoch, part.begin + skip, take,
                        skip + take == size});
    wanted -= take;
    skip = 0;
  }
}

void DocumentStream::read(std::int64_t offset, std::int64_t count, std::vector<std::int32_t>& ids,
                          std::vector<DocumentSpan>* spans) {
  std::int64_t epoch = epoch_of(offset);
  std::int64_t skip = offset - epoch_begin(epoch);
  std::int64_t position = find_position(table(epoch), skip);
  while (count > 0) {
    if (position == source_.num_units()) {
      ++epoch;
      position = 0;
    }
    read_unit((*table(epoch).order)(position), epoch, skip, count, ids, spans);
    skip = 0;
    ++position;
  }
}

DocumentStream::Place DocumentStream::place_at_or_after(std::int64_t offset) {
  const std::int64_t epoch = epoch_of(offset);
  std::int64_t within = offset - epoch_begin(epoch);
  const std::int64_t position = find_position(table(epoch), within);
  if (within == 0) return {epoch, position};
  return position + 1 == source_.num_units() ? Place{epoch + 1, 0} : Place{epoch, position + 1};
}

std::int64_t DocumentStream::offset_of(const Place& place) {
  EpochTable& entry = table(place.epoch);
  const std::int64_t index = place.unit_position / kStride;
  std::int64_t offset = entry.begins[static_cast<std::size_t>(index)];
  for (std::int64_t position = index * kStride; position < place.unit_position; ++position)
    offset += unit_size((*entry.order)(position), place.epoch);
  return epoch_begin(place.epoch) + offset;
}

}  // namespace openmoe
