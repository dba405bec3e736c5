#include <array>
#include <filesystem>
#include <limits>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/durable_files.h"
#include "data/h5_file.h"
#include "data/shard.h"
#include "data/shard_format.h"

namespace openmoe {
namespace {

// What is collected of one split until the shard is finished; tokens leave block by block.
struct SplitBuffer {
  std::vector<std::int32_t> block;  // fewer than kShardBlockTokens, except inside add()
  DocumentIndex index;
  std::vector<std::uint64_t> checksums;

  SplitBuffer() { index.offsets = index.part_offsets = {0}; }
};

}  // namespace

struct ShardWriter::Impl {
  std::string path;
  std::string temporary;
  bool wide = false;
  std::unique_ptr<H5File> file;
  std::array<SplitBuffer, 2> splits;
  std::map<std::string, std::uint16_t> tag_index;
  std::vector<std::string> tags;

  std::uint16_t tag(const std::string& name);
  void flush(Split split, std::size_t count);
  void write_index(Split split, bool is_chat);
};

std::uint16_t ShardWriter::Impl::tag(const std::string& name) {
  const auto [entry, is_new] = tag_index.try_emplace(name, static_cast<std::uint16_t>(tags.size()));
  if (is_new) {
    if (tags.size() == std::numeric_limits<std::uint16_t>::max()) {
      // Free text in a language field; the documents themselves are fine.
      tag_index.erase(entry);
      return tag("");
    }
    tags.push_back(name);
  }
  return entry->second;
}

// Writes the first `count` tokens of the buffer as one block.
void ShardWriter::Impl::flush(Split split, std::size_t count) {
  SplitBuffer& buffer = splits[static_cast<std::size_t>(split)];
  if (count == 0) return;
  const std::string name = tokens_name(split);
  if (wide) {
    const std::vector<std::uint32_t> ids(buffer.block.begin(),
                                         buffer.block.begin() + static_cast<std::ptrdiff_t>(count));
    buffer.checksums.push_back(xxh3_64(ids.data(), ids.size() * sizeof(ids[0])));
    file->append(name, ids.data(), static_cast<std::int64_t>(count));
  } else {
    std::vector<std::uint16_t> ids(count);
    for (std::size_t i = 0; i < count; ++i) ids[i] = static_cast<std::uint16_t>(buffer.block[i]);
    buffer.checksums.push_back(xxh3_64(ids.data(), ids.size() * sizeof(ids[0])));
    file->append(name, ids.data(), static_cast<std::int64_t>(count));
  }
  buffer.block.erase(buffer.block.begin(),
                     buffer.block.begin() + static_cast<std::ptrdiff_t>(count));
}

void ShardWriter::Impl::write_index(Split split, bool is_chat) {
  SplitBuffer& buffer = splits[static_cast<std::size_t>(split)];
  DocumentIndex& index = buffer.index;
  const std::string group = std::string(name_of(split)) + "/";
  const auto documents = static_cast<std::int64_t>(index.records.size());
  const auto write = [&](const char* name, const char* type, const auto& values) {
    file->write_raw(group + name, type, {static_cast<std::int64_t>(values.size())}, values.data());
  };
  write("document_offsets", "i64", index.offsets);
  file->write_raw(group + "document_hashes", "u64", {documents, 2}, index.hashes.data());
  write("document_records", "i64", index.records);
  write("document_tags", "u16", index.tags);
  write("block_checksums", "u64", buffer.checksums);
  if (is_chat) {
    write("part_offsets", "i64", index.part_offsets);
    write("part_ends", "i64", index.part_ends);
  } else {
    index.part_offsets.clear();
  }
  file->set_attribute(name_of(split), "index_checksum", to_hex(index.checksum()));
}

ShardWriter::ShardWriter(const std::string& path, std::int64_t vocab_size, int deflate)
    : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->temporary = path + ".tmp";
  impl_->wide = vocab_size > 65536;
  impl_->file = std::make_unique<H5File>(impl_->temporary, H5File::Mode::create);
  for (const Split split : {Split::train, Split::validation})
    impl_->file->create_growable(tokens_name(split), impl_->wide ? "u32" : "u16",
                                 {kShardBlockTokens, deflate});
}

ShardWriter::~ShardWriter() {
  if (impl_->file == nullptr) return;
  impl_->file.reset();
  std::error_code ignored;
  std::filesystem::remove(impl_->temporary, ignored);
}

void ShardWriter::add(Split split, std::span<const std::int32_t> ids, const Hash128& hash,
                      std::int64_t record, const std::string& tag,
                      std::span<const std::int64_t> part_ends) {
  SplitBuffer& buffer = impl_->splits[static_cast<std::size_t>(split)];
  for (std::size_t begin = 0; begin < ids.size();) {
    const std::size_t part = std::min(
        ids.size() - begin, static_cast<std::size_t>(kShardBlockTokens) - buffer.block.size());
    buffer.block.insert(buffer.block.end(), ids.begin() + static_cast<std::ptrdiff_t>(begin),
                        ids.begin() + static_cast<std::ptrdiff_t>(begin + part));
    begin += part;
    if (static_cast<std::int64_t>(buffer.block.size()) == kShardBlockTokens)
      impl_->flush(split, buffer.block.size());
  }
  DocumentIndex& index = buffer.index;
  index.offsets.push_back(index.offsets.back() + static_cast<std::int64_t>(ids.size()));
  index.hashes.push_back(hash.high);
  index.hashes.push_back(hash.low);
  index.records.push_back(record);
  index.tags.push_back(impl_->tag(tag));
  index.part_ends.insert(index.part_ends.end(), part_ends.begin(), part_ends.end());
  index.part_offsets.push_back(static_cast<std::int64_t>(index.part_ends.size()));
}

std::int64_t ShardWriter::num_tokens() const {
  return impl_->splits[0].index.offsets.back() + impl_->splits[1].index.offsets.back();
}

void ShardWriter::finish(const ShardHeader& header) {
  H5File& file = *impl_->file;
  for (const Split split : {Split::train, Split::validation}) {
    impl_->flush(split, impl_->splits[static_cast<std::size_t>(split)].block.size());
    impl_->write_index(split, header.is_chat);
  }
  file.write_strings("tags", impl_->tags);
  write_header(file, header);
  file.close();
  impl_->file.reset();
  publish_file(impl_->temporary, impl_->path);
}

}  // namespace openmoe
