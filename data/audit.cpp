#include "data/audit.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <unordered_map>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/data_folder.h"
#include "data/shard.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr Split kSplits[] = {Split::train, Split::validation};

struct HashOfHash {
  std::size_t operator()(const Hash128& hash) const { return hash.low; }
};
// Text hash -> index of the first source that holds it.
using FirstSource = std::unordered_map<Hash128, std::size_t, HashOfHash>;

std::vector<std::string> source_folders(const std::string& data_folder) {
  if (!fs::is_directory(data_folder))
    throw UserError(concat(data_folder, ": no such data folder; make it with openmoe prepare"));
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(data_folder))
    if (entry.is_directory() && !list_shards(entry.path().string()).empty())
      names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  if (names.empty())
    throw UserError(concat(data_folder, ": holds no shards; make them with openmoe prepare"));
  return names;
}

void audit_split(const std::string& path, Split split, std::size_t source, FirstSource& first,
                 SourceAudit& audit) {
  ShardReader reader(path, split);
  audit.documents[static_cast<int>(split)] += reader.num_documents();
  audit.tokens[static_cast<int>(split)] += reader.num_tokens();
  for (const Hash128& hash : reader.read_hashes()) {
    const auto [entry, is_new] = first.try_emplace(hash, source);
    if (is_new) continue;
    ++(entry->second == source ? audit.duplicates_inside : audit.duplicates_outside);
  }
  for (const std::string& problem : reader.verify()) audit.problems.push_back(problem);
}

void audit_shard(const std::string& path, std::size_t source, FirstSource& first,
                 std::map<std::string, ShardHeader>& last_of_input, SourceAudit& audit) {
  const ShardHeader header = read_shard_header(path);
  ++audit.shards;
  audit.text_bytes += header.text_bytes;
  audit.removed_duplicates += header.duplicates_removed;
  audit.skipped_records += header.skipped_records;
  const auto before = last_of_input.find(header.input_sha256);
  const std::int64_t expected = before == last_of_input.end() ? 0 : before->second.records_end;
  if (header.records_begin != expected)
    audit.problems.push_back(concat(path, ": begins at record ", header.records_begin, " of ",
                                    header.input_file, ", but the shards before it end at ",
                                    expected, ": a shard is missing"));
  last_of_input[header.input_sha256] = header;
  for (const Split split : kSplits) audit_split(path, split, source, first, audit);
}

SourceAudit audit_source(const std::string& data_folder, const std::string& name, std::size_t index,
                         FirstSource& first) {
  SourceAudit audit;
  audit.source = name;
  std::map<std::string, ShardHeader> last_of_input;
  for (const std::string& path : list_shards(concat(data_folder, "/", name))) {
    try {
      audit_shard(path, index, first, last_of_input, audit);
    } catch (const UserError& error) {
      audit.problems.push_back(error.what());
    }
  }
  for (const auto& [input, header] : last_of_input) {
    if (header.input_complete) continue;
    audit.is_complete = false;
    audit.problems.push_back(concat(name, ": ", header.input_file, " is prepared up to record ",
                                    header.records_end, " only; run prepare again to continue"));
  }
  return audit;
}

// Ids seen, one set per tokenizer.
struct Use {
  std::int64_t tokens[2] = {0, 0};
  std::vector<bool> seen[2];

  void add(int which, const std::vector<std::int32_t>& ids, std::int64_t vocab) {
    seen[which].resize(static_cast<std::size_t>(vocab), false);
    tokens[which] += static_cast<std::int64_t>(ids.size());
    for (const std::int32_t id : ids) seen[which][static_cast<std::size_t>(id)] = true;
  }
  TokenizerUse result(const std::string& source, const std::string& tag) const {
    TokenizerUse use;
    use.source = source;
    use.tag = tag;
    for (int which = 0; which < 2; ++which) {
      use.tokens[which] = tokens[which];
      use.distinct_ids[which] = std::count(seen[which].begin(), seen[which].end(), true);
    }
    return use;
  }
};

}  // namespace

std::vector<SourceAudit> audit_sources(const std::string& data_folder) {
  std::vector<SourceAudit> audits;
  FirstSource first;
  for (const std::string& name : source_folders(data_folder))
    audits.push_back(audit_source(data_folder, name, audits.size(), first));
  return audits;
}

std::vector<TokenizerUse> compare_tokenizers(const std::string& data_folder,
                                             const std::string& other_model) {
  const std::vector<std::string> names = source_folders(data_folder);
  DataFolder data(data_folder, names);
  const Tokenizer other(other_model);
  WordCache cache;
  std::vector<TokenizerUse> uses;
  for (std::size_t s = 0; s < names.size(); ++s) {
    SourceReader& reader = data.train(s);
    Use whole;
    std::map<std::string, Use> by_tag;
    std::vector<std::int32_t> own_ids;
    std::vector<std::int32_t> other_ids;
    for (std::int64_t shard = 0; shard < reader.num_shards(); ++shard) {
      ShardReader& file = reader.shard(shard);
      const std::vector<std::string> tags = file.read_tags();
      std::int64_t offsets[2];
      for (std::int64_t document = 0; document < file.num_documents(); ++document) {
        file.read_offsets(document, 1, offsets);
        own_ids.clear();
        other_ids.clear();
        file.read_tokens(offsets[0], offsets[1], own_ids);
        other.encode(data.tokenizer().decode(own_ids), other_ids, &cache);
        for (Use* use : {&whole, &by_tag[tags[static_cast<std::size_t>(document)]]}) {
          use->add(0, own_ids, data.tokenizer().vocab_size());
          use->add(1, other_ids, other.vocab_size());
        }
      }
    }
    uses.push_back(whole.result(names[s], ""));
    if (by_tag.size() > 1)
      for (const auto& [tag, use] : by_tag)
        uses.push_back(use.result(names[s], tag.empty() ? "(none)" : tag));
  }
  return uses;
}

RealisedMixture read_mixture(BatchStream& stream, std::int64_t begin, std::int64_t end) {
  RealisedMixture mixture;
  mixture.source_rows.assign(stream.source_names().size(), 0);
  mixture.asked_rows.assign(stream.source_names().size(), 0.0);
  const std::int64_t rows = stream.recipe().data.batch_rows;
  Batch batch;
  for (std::int64_t step = begin; step < end; ++step) {
    if (step + 1 < end) stream.prefetch(step + 1, 0, rows);
    stream.read(step, 0, rows, batch);
    const std::vector<double> shares = stream.asked_shares(step);
    for (std::size_t s = 0; s < shares.size(); ++s)
      mixture.asked_rows[s] += shares[s] * static_cast<double>(rows);
    for (const std::int32_t source : batch.row_sources)
      ++mixture.source_rows[static_cast<std::size_t>(source)];
    mixture.rows += rows;
    mixture.positions += rows * batch.sequence_length;
    mixture.real_tokens += std::count_if(batch.segment_ids.begin(), batch.segment_ids.end(),
                                         [](std::int32_t segment) { return segment > 0; });
    mixture.loss_tokens += std::count_if(batch.loss_weights.begin(), batch.loss_weights.end(),
                                         [](float weight) { return weight > 0.0f; });
  }
  return mixture;
}

}  // namespace openmoe
