#include "data/chat_stream.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/base/rng.h"

namespace openmoe {

ChatStream::ChatStream(SourceReader& source, std::uint64_t seed, std::int64_t sequence_length)
    : source_(source), seed_(seed), length_(sequence_length) {
  if (!source.header().is_chat)
    throw UserError(
        concat("source \"", source.name(),
               "\": supervised fine-tuning needs conversations; prepare it with --chat"));
  if (source.num_units() != source.num_documents())
    throw UserError(concat("source \"", source.name(), "\": ", source.num_documents(),
                           " conversations are more than fine-tuning takes (2097152)"));
  for (std::int64_t unit = 0; unit < source.num_units(); ++unit) {
    source.find_unit(unit, unit_);
    source.shard(unit_.shard).read_parts(unit_.first, parts_);
    if (!parts_.empty() && parts_[0] < length_) usable_.push_back(unit);
  }
  if (usable_.empty())
    throw UserError(
        concat("source \"", source.name(),
               "\": no conversation has a reply within data.sequence_length = ", length_));
}

ChatStream::EpochTable& ChatStream::table(std::int64_t epoch) {
  EpochTable& entry = tables_[epoch % 2];
  if (entry.epoch == epoch) return entry;
  const auto count = static_cast<std::int64_t>(usable_.size());
  const Permutation order(count, seed_,
                          stream_id("conversation order", stream_id(source_.name()),
                                    static_cast<std::uint64_t>(epoch)));
  entry.documents.clear();
  entry.row_begins.clear();
  std::int64_t free = -1;  // positions left in the open row
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t unit = usable_[static_cast<std::size_t>(order(i))];
    const std::int64_t length = length_of(unit);
    if (length > free) {
      entry.row_begins.push_back(i);
      free = length_;
    }
    free -= length;
    entry.documents.push_back(unit);
  }
  entry.row_begins.push_back(count);
  entry.epoch = epoch;
  return entry;
}

std::int64_t ChatStream::epoch_begin(std::int64_t epoch) {
  while (static_cast<std::int64_t>(epoch_begins_.size()) <= epoch) {
    const EpochTable& last = table(static_cast<std::int64_t>(epoch_begins_.size()) - 1);
    epoch_begins_.push_back(epoch_begins_.back() +
                            static_cast<std::int64_t>(last.row_begins.size()) - 1);
  }
  return epoch_begins_[static_cast<std::size_t>(epoch)];
}

std::int64_t ChatStream::epoch_of(std::int64_t row) {
  while (epoch_begins_.back() <= row) epoch_begin(static_cast<std::int64_t>(epoch_begins_.size()));
  const auto next = std::upper_bound(epoch_begins_.begin(), epoch_begins_.end(), row);
  return next - epoch_begins_.begin() - 1;
}

double ChatStream::tokens_per_row() {
  std::int64_t tokens = 0;
  for (const std::int64_t unit : usable_) tokens += length_of(unit);
  return static_cast<double>(tokens) / static_cast<double>(epoch_begin(1));
}

double ChatStream::loss_tokens_per_row() {
  std::int64_t tokens = 0;
  for (const std::int64_t unit : usable_) {
    source_.find_unit(unit, unit_);
    source_.shard(unit_.shard).read_parts(unit_.first, parts_);
    for (std::size_t part = 1; part < parts_.size(); part += 2)  // replies, as far as they fit
      tokens += std::min(parts_[part], length_) - std::min(parts_[part - 1], length_);
  }
  return static_cast<double>(tokens) / static_cast<double>(epoch_begin(1));
}

void ChatStream::add_conversation(std::int64_t unit, std::int64_t begin, std::int32_t segment,
                                  Batch& batch, std::int64_t row) {
  source_.find_unit(unit, unit_);
  ShardReader& shard = source_.shard(unit_.shard);
  const std::int64_t length = length_of(unit);
  ids_.clear();
  shard.read_tokens(unit_.offsets[0], unit_.offsets[0] + length, ids_);
  shard.read_parts(unit_.first, parts_);
  std::size_t part = 0;  // even: prompt, odd: reply
  for (std::int64_t i = 0; i < length; ++i) {
    while (part < parts_.size() && i >= parts_[part]) ++part;
    const auto at = static_cast<std::size_t>(row * batch.sequence_length + begin + i);
    batch.targets[at] = ids_[static_cast<std::size_t>(i)];
    batch.inputs[at] = i == 0 ? 0 : ids_[static_cast<std::size_t>(i) - 1];
    batch.loss_weights[at] = part % 2 == 1 ? 1.0f : 0.0f;
    batch.segment_ids[at] = segment;
  }
}

void ChatStream::build_row(std::int64_t stream_row, Batch& batch, std::int64_t row,
                           std::vector<DocumentSpan>* spans) {
  const std::int64_t epoch = epoch_of(stream_row);
  const EpochTable& entry = table(epoch);
  const auto index = static_cast<std::size_t>(stream_row - epoch_begin(epoch));
  std::int64_t begin = 0;
  std::int32_t segment = 0;
  for (std::int64_t i = entry.row_begins[index]; i < entry.row_begins[index + 1]; ++i) {
    const std::int64_t unit = entry.documents[static_cast<std::size_t>(i)];
    add_conversation(unit, begin, ++segment, batch, row);
    const std::int64_t length = length_of(unit);
    if (spans != nullptr)
      spans->push_back(
          {unit_.shard, unit_.first, epoch, 0, length, length == source_.unit_tokens(unit)});
    begin += length;
  }
}

}  // namespace openmoe
