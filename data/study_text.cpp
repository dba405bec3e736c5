#include "data/study_text.h"

#include <algorithm>
#include <filesystem>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/record_reader.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxRecordBytes = std::int64_t{64} << 20;

std::vector<std::string> folders_below(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.is_directory() && !list_shards(entry.path()).empty())
      names.push_back(entry.path().filename());
  if (error) throw UserError("--data " + folder + ": cannot be read: " + error.message());
  std::sort(names.begin(), names.end());
  return names;
}

void read_shard(StudySource& source, ShardReader& reader) {
  const std::int64_t count = reader.num_documents();
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(count + 1));
  reader.read_offsets(0, count, offsets.data());
  const std::vector<Hash128> hashes = reader.read_hashes();
  const std::vector<std::string> tags = reader.read_tags();
  for (std::size_t d = 0; d < hashes.size(); ++d) {
    StudyDocument document;
    reader.read_tokens(offsets[d], offsets[d + 1], document.ids);
    document.tag = tags[d];
    document.hash = hashes[d];
    source.documents.push_back(std::move(document));
  }
}

}  // namespace

std::vector<StudySource> read_study_shards(const std::string& folder,
                                           const std::vector<std::string>& names, Split split,
                                           const std::string& tokenizer_sha256) {
  std::vector<StudySource> sources;
  std::string tokenizer = tokenizer_sha256;
  for (const std::string& name : names.empty() ? folders_below(folder) : names) {
    const std::vector<std::string> shards = list_shards(concat(folder, "/", name));
    if (shards.empty()) throw UserError(concat(folder, "/", name, ": holds no shards"));
    StudySource source;
    source.name = name;
    for (const std::string& path : shards) {
      ShardReader reader(path, split);
      if (tokenizer.empty()) tokenizer = reader.header().tokenizer_sha256;
      if (const std::string& found = reader.header().tokenizer_sha256; found != tokenizer)
        throw UserError(tokenizer == tokenizer_sha256
                            ? concat(path, ": was made with another tokenizer (", found,
                                     ") than that of the checkpoint (", tokenizer,
                                     "); prepare the text with the tokenizer kept with the run, or "
                                     "name the checkpoint's with --tokenizer and --sentinels")
                            : path + ": was made with another tokenizer than the shards before it");
      read_shard(source, reader);
    }
    if (!source.documents.empty()) sources.push_back(std::move(source));
  }
  if (sources.empty())
    throw UserError(concat("--data ", folder, ": no source has ", name_of(split),
                           " documents; prepare with --validation-fraction, or see --split"));
  return sources;
}

StudySource read_study_file(const std::string& name, const std::string& path,
                            const Tokenizer& tokenizer) {
  StudySource source;
  source.name = name;
  const std::vector<InputInfo> inputs = list_inputs(path);
  for (const InputInfo& input : inputs) {
    const auto reader = open_input(input, kMaxRecordBytes);
    RawRecord record;
    Document document;
    while (reader->next(record)) {
      std::int64_t offset = 0;
      const std::string problem = parse_document(record, "", document, offset);
      if (!problem.empty())
        throw UserError(
            concat(record.file, ", line ", record.line, ", byte ", offset, ": ", problem));
      StudyDocument study;
      tokenizer.encode(document.text, study.ids);
      study.tag = document.tag;
      study.hash = xxh3_128(document.text);
      if (!study.ids.empty()) source.documents.push_back(std::move(study));
    }
  }
  if (source.documents.empty()) throw UserError(path + ": holds no documents");
  return source;
}

StudyText::StudyText(const std::vector<StudySource>& sources, std::int64_t length,
                     std::int64_t document_positions)
    : length_(length) {
  trace_.sequence_length = length;
  for (const StudySource& source : sources) add_source(source, document_positions);
}

void StudyText::add_source(const StudySource& source, std::int64_t document_positions) {
  std::vector<const StudyDocument*> order;
  for (const StudyDocument& document : source.documents) order.push_back(&document);
  std::sort(order.begin(), order.end(), [](const StudyDocument* a, const StudyDocument* b) {
    return a->hash.high != b->hash.high ? a->hash.high < b->hash.high : a->hash.low < b->hash.low;
  });
  const auto source_index = static_cast<std::int32_t>(trace_.sources.size());
  trace_.sources.push_back(source.name);
  std::vector<std::int32_t> stream, documents;  // targets and what they belong to
  for (const StudyDocument* document : order) {
    if (static_cast<std::int64_t>(stream.size()) >= source.positions) break;
    const auto index = static_cast<std::int32_t>(trace_.documents.size());
    trace_.documents.push_back({source_index, document->tag});
    const auto num_ids = static_cast<std::int64_t>(document->ids.size());
    const std::int64_t used =
        document_positions > 0 ? std::min(num_ids, document_positions - 1) : num_ids;
    stream.insert(stream.end(), document->ids.begin(), document->ids.begin() + used);
    stream.push_back(Tokenizer::kEos);
    documents.resize(stream.size(), index);
  }
  const auto total = std::min<std::int64_t>(static_cast<std::int64_t>(stream.size()),
                                            std::max(length_, source.positions));
  for (std::int64_t begin = 0; begin < total; begin += length_) {
    const std::int64_t end = std::min(total, begin + length_);
    for (std::int64_t i = begin; i < end; ++i) {
      const auto at = static_cast<std::size_t>(i);
      trace_.token_ids.push_back(i == begin ? Tokenizer::kPad : stream[at - 1]);
      trace_.document.push_back(documents[i == begin ? at : at - 1]);
      targets_.push_back(stream[at]);
    }
    trace_.sequence_sources.push_back(source_index);
    trace_.sequence_offsets.push_back(trace_.num_tokens());
  }
}

void StudyText::fill(Batch& batch, std::int64_t begin, std::int64_t end, std::int64_t rows) const {
  OPENMOE_CHECK(end - begin <= rows, end - begin, " rows for ", rows);
  batch.resize(rows, length_);
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t first = trace_.sequence_offsets[static_cast<std::size_t>(row)];
    const std::int64_t last = trace_.sequence_offsets[static_cast<std::size_t>(row + 1)];
    const std::int64_t to = (row - begin) * length_, count = last - first;
    std::copy_n(trace_.token_ids.begin() + first, count, batch.inputs.begin() + to);
    std::copy_n(targets_.begin() + first, count, batch.targets.begin() + to);
    std::fill_n(batch.loss_weights.begin() + to, count, 1.0f);
    std::fill_n(batch.segment_ids.begin() + to, count, 1);
    batch.row_sources[static_cast<std::size_t>(row - begin)] =
        trace_.sequence_sources[static_cast<std::size_t>(row)];
  }
}

std::int64_t StudyText::end_of_block(std::int64_t begin, std::int64_t rows) const {
  std::int64_t end = begin + 1;
  const auto source = [&](std::int64_t row) {
    return trace_.sequence_sources[static_cast<std::size_t>(row)];
  };
  while (end < num_rows() && end < begin + rows && source(end) == source(begin)) ++end;
  return end;
}

std::vector<std::int64_t> StudyText::blocks(std::int64_t rows) const {
  std::vector<std::int64_t> begins;
  for (std::int64_t row = 0; row < num_rows(); row = end_of_block(row, rows)) begins.push_back(row);
  return begins;
}

}  // namespace openmoe
