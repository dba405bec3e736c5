// openmoe data summary: size and unigram entropy of each prepared source. A model that has learned
// anything beyond how often each token occurs has a lower cross-entropy than that.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/command.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "data/shard.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

struct SourceSummary {
  std::string name;
  std::int64_t documents = 0;
  std::int64_t validation_tokens = 0;
  std::vector<std::int64_t> counts;  // of each token id in the training split

  std::int64_t tokens() const {
    std::int64_t sum = 0;
    for (const std::int64_t count : counts) sum += count;
    return sum;
  }
  std::int64_t distinct() const {
    return std::count_if(counts.begin(), counts.end(),
                         [](std::int64_t count) { return count > 0; });
  }
  // Of the token frequencies, in nats per token.
  double entropy() const {
    const auto total = static_cast<double>(tokens());
    double sum = 0.0;
    for (const std::int64_t count : counts)
      if (count > 0)
        sum -= static_cast<double>(count) / total * std::log(static_cast<double>(count) / total);
    return sum;
  }
  void add(const SourceSummary& other) {
    documents += other.documents;
    validation_tokens += other.validation_tokens;
    counts.resize(std::max(counts.size(), other.counts.size()));
    for (std::size_t id = 0; id < other.counts.size(); ++id) counts[id] += other.counts[id];
  }
};

SourceSummary summarize(const std::string& name, const std::vector<std::string>& shards) {
  constexpr std::int64_t kTokensAtOnce = 16 * kShardBlockTokens;
  SourceSummary summary;
  summary.name = name;
  std::vector<std::int32_t> ids;
  for (const std::string& path : shards) {
    ShardReader reader(path, Split::train);
    summary.documents += reader.num_documents();
    summary.validation_tokens += ShardReader(path, Split::validation).num_tokens();
    const auto vocab = static_cast<std::size_t>(reader.header().vocab_size());
    summary.counts.resize(std::max(summary.counts.size(), vocab));
    for (std::int64_t begin = 0; begin < reader.num_tokens(); begin += kTokensAtOnce) {
      ids.clear();
      reader.read_tokens(begin, std::min(begin + kTokensAtOnce, reader.num_tokens()), ids);
      for (const std::int32_t id : ids) ++summary.counts.at(static_cast<std::size_t>(id));
    }
  }
  return summary;
}

std::vector<SourceSummary> summarize_folder(const std::string& folder) {
  if (!fs::is_directory(folder))
    throw UserError("--data " + folder + ": there is no such folder; make it with openmoe prepare");
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  std::vector<SourceSummary> summaries;
  SourceSummary all;
  all.name = "all";
  for (const std::string& name : names) {
    const auto shards = list_shards(concat(folder, "/", name));
    if (shards.empty()) continue;
    summaries.push_back(summarize(name, shards));
    all.add(summaries.back());
  }
  if (summaries.empty())
    throw UserError("--data " + folder + ": holds no shards; make them with openmoe prepare");
  summaries.push_back(all);
  return summaries;
}

int run_summary(const MpiEnvironment& mpi, const std::string& folder, bool as_json) {
  if (mpi.world_rank() != 0) return kExitSuccess;
  const std::vector<SourceSummary> summaries = summarize_folder(folder);
  if (as_json) {
    for (const SourceSummary& source : summaries) {
      const nlohmann::ordered_json row = {{"source", source.name},
                                          {"documents", source.documents},
                                          {"tokens", source.tokens()},
                                          {"validation_tokens", source.validation_tokens},
                                          {"distinct_ids", source.distinct()},
                                          {"unigram_entropy", source.entropy()}};
      std::printf("%s\n", row.dump().c_str());
    }
    return kExitSuccess;
  }
  std::printf("%-20s %10s %12s %12s %9s %8s\n", "source", "documents", "tokens", "validation",
              "distinct", "entropy");
  for (const SourceSummary& source : summaries)
    std::printf("%-20s %10lld %12lld %12lld %9lld %8.4f\n", source.name.c_str(),
                static_cast<long long>(source.documents), static_cast<long long>(source.tokens()),
                static_cast<long long>(source.validation_tokens),
                static_cast<long long>(source.distinct()), source.entropy());
  return kExitSuccess;
}

}  // namespace

void register_data_summary(CLI::App& data, CommandContext& context) {
  struct Options {
    std::string folder;
    bool as_json = false;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* command =
      data.add_subcommand("summary", "size and unigram entropy (nats per token) of each source");
  command->add_option("--data", options->folder, "folder of token shards, from `openmoe prepare`")
      ->required();
  command->add_flag("--json", options->as_json, "print one JSON object per source");
  command->callback([options, &context] {
    context.run = [options, &context] {
      return run_summary(context.mpi, options->folder, options->as_json);
    };
  });
}

}  // namespace openmoe
