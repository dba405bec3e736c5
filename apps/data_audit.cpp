// openmoe data audit: is a data folder whole, and what does a recipe make of it. See data/audit.h.
#include "data/audit.h"

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "apps/command.h"
#include "apps/mixtures.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/recipe_io.h"

namespace openmoe {
namespace {

using Json = nlohmann::ordered_json;

struct AuditOptions {
  std::string data_folder;
  RecipeOptions recipe;  // path empty: none
  std::int64_t first_step = 0;
  std::int64_t num_steps = 100;
  std::string other_tokenizer;
  bool json = false;
};

Json sources_json(const std::vector<SourceAudit>& audits) {
  Json list = Json::array();
  for (const SourceAudit& audit : audits) {
    Json row;
    row["source"] = audit.source;
    row["shards"] = audit.shards;
    row["documents"] = audit.documents[0];
    row["tokens"] = audit.tokens[0];
    row["validation_documents"] = audit.documents[1];
    row["validation_tokens"] = audit.tokens[1];
    row["text_bytes"] = audit.text_bytes;
    row["duplicates_inside"] = audit.duplicates_inside;
    row["duplicates_outside"] = audit.duplicates_outside;
    row["removed_duplicates"] = audit.removed_duplicates;
    row["skipped_records"] = audit.skipped_records;
    row["complete"] = audit.is_complete;
    row["problems"] = audit.problems;
    list.push_back(row);
  }
  return list;
}

void print_sources(const Json& sources) {
  std::printf("%-20s %7s %10s %13s %10s %12s %11s %11s %9s %8s\n", "source", "shards", "documents",
              "tokens", "held out", "tokens", "dup. inside", "dup. others", "removed", "skipped");
  std::int64_t problems = 0;
  for (const Json& row : sources) {
    std::printf("%-20s", row["source"].get<std::string>().c_str());
    const std::pair<const char*, int> columns[] = {{"shards", 7},
                                                   {"documents", 10},
                                                   {"tokens", 13},
                                                   {"validation_documents", 10},
                                                   {"validation_tokens", 12},
                                                   {"duplicates_inside", 11},
                                                   {"duplicates_outside", 11},
                                                   {"removed_duplicates", 9},
                                                   {"skipped_records", 8}};
    for (const auto& [key, width] : columns)
      std::printf(" %*lld", width, row[key].get<long long>());
    std::printf("\n");
    for (const auto& problem : row["problems"]) {
      std::printf("  PROBLEM %s\n", problem.get<std::string>().c_str());
      ++problems;
    }
  }
  std::printf(
      problems == 0 ? "every block and index agrees with its checksum\n" : "%lld problems\n",
      static_cast<long long>(problems));
}

Json tokenizers_json(const AuditOptions& options) {
  Json list = Json::array();
  for (const TokenizerUse& use : compare_tokenizers(options.data_folder, options.other_tokenizer))
    list.push_back({{"source", use.source},
                    {"tag", use.tag},
                    {"tokens", use.tokens[0]},
                    {"distinct_ids", use.distinct_ids[0]},
                    {"other_tokens", use.tokens[1]},
                    {"other_distinct_ids", use.distinct_ids[1]}});
  return list;
}

void print_tokenizers(const Json& uses, const std::string& other) {
  std::printf("\ntokens and distinct ids: this folder's tokenizer, and %s\n", other.c_str());
  std::printf("%-20s %-20s %13s %9s %13s %9s\n", "source", "tag", "tokens", "ids", "tokens", "ids");
  for (const Json& use : uses)
    std::printf("%-20s %-20s %13lld %9lld %13lld %9lld\n", use["source"].get<std::string>().c_str(),
                use["tag"].get<std::string>().c_str(), use["tokens"].get<long long>(),
                use["distinct_ids"].get<long long>(), use["other_tokens"].get<long long>(),
                use["other_distinct_ids"].get<long long>());
}

// Epochs of every source when each phase ends and when the run does.
Json milestones_json(BatchStream& stream) {
  const Recipe& recipe = stream.recipe();
  std::set<std::int64_t> steps = {recipe.run.num_steps};
  for (std::size_t p = 1; p < recipe.data.phases.size(); ++p) {
    const std::int64_t begin = stream.phase_begin(static_cast<std::int64_t>(p));
    if (begin < recipe.run.num_steps) steps.insert(begin);
  }
  Json list = Json::array();
  for (const std::int64_t step : steps) {
    Json row = {{"step", step},
                {"positions", step * recipe.data.batch_rows * recipe.data.sequence_length}};
    for (const SourceProgress& entry : stream.progress(step))
      row["sources"].push_back(
          {{"source", entry.source}, {"rows", entry.rows}, {"epochs", entry.epochs}});
    list.push_back(row);
  }
  return list;
}

Json mixture_json(BatchStream& stream, const AuditOptions& options) {
  const RealisedMixture mixture =
      read_mixture(stream, options.first_step, options.first_step + options.num_steps);
  Json json = {{"first_step", options.first_step},
               {"num_steps", options.num_steps},
               {"rows", mixture.rows},
               {"positions", mixture.positions},
               {"real_tokens", mixture.real_tokens},
               {"loss_tokens", mixture.loss_tokens}};
  for (std::size_t s = 0; s < stream.source_names().size(); ++s)
    json["sources"].push_back({{"source", stream.source_names()[s]},
                               {"rows", mixture.source_rows[s]},
                               {"asked_rows", mixture.asked_rows[s]}});
  return json;
}

void print_training(const Json& mixture, const Json& milestones) {
  const auto share = [&](const char* key) {
    return 100.0 * mixture[key].get<double>() / mixture["positions"].get<double>();
  };
  std::printf(
      "\nsteps %lld to %lld: %lld rows; %.2f%% of the positions are real, %.2f%% carry loss\n",
      mixture["first_step"].get<long long>(),
      mixture["first_step"].get<long long>() + mixture["num_steps"].get<long long>() - 1,
      mixture["rows"].get<long long>(), share("real_tokens"), share("loss_tokens"));
  std::printf("%-20s %10s %12s %9s\n", "source", "rows", "asked", "percent");
  for (const Json& row : mixture["sources"])
    std::printf("%-20s %10lld %12.1f %9.3f\n", row["source"].get<std::string>().c_str(),
                row["rows"].get<long long>(), row["asked_rows"].get<double>(),
                100.0 * row["rows"].get<double>() / mixture["rows"].get<double>());
  std::printf("\nepochs of each source before a step\n%-20s", "source");
  for (const Json& milestone : milestones)
    std::printf(" %12lld", milestone["step"].get<long long>());
  std::printf("\n");
  for (std::size_t s = 0; s < milestones[0]["sources"].size(); ++s) {
    std::printf("%-20s", milestones[0]["sources"][s]["source"].get<std::string>().c_str());
    for (const Json& milestone : milestones)
      std::printf(" %12.3f", milestone["sources"][s]["epochs"].get<double>());
    std::printf("\n");
  }
}

int run_audit(const AuditOptions& options, CommandContext& context) {
  if (context.mpi.world_rank() != 0) return kExitSuccess;
  if (options.first_step < 0 || options.num_steps < 1)
    throw UserError(concat("--step ", options.first_step, " --steps ", options.num_steps,
                           ": steps count from 0, and at least one is needed"));
  Json report;
  report["sources"] = sources_json(audit_sources(options.data_folder));
  bool is_whole = true;
  for (const Json& row : report["sources"]) is_whole = is_whole && row["problems"].empty();
  if (!options.json) print_sources(report["sources"]);
  if (!options.other_tokenizer.empty() && is_whole) {
    report["tokenizers"] = tokenizers_json(options);
    if (!options.json) print_tokenizers(report["tokenizers"], options.other_tokenizer);
  }
  if (!options.recipe.path.empty() && is_whole) {
    const Recipe recipe = load_recipe(options.recipe.path, options.recipe.overrides);
    BatchStream stream(recipe, options.data_folder, load_mixtures(recipe, options.recipe.path));
    report["mixture"] = mixture_json(stream, options);
    report["milestones"] = milestones_json(stream);
    if (!options.json) print_training(report["mixture"], report["milestones"]);
  }
  if (options.json)
    std::printf("%s\n",
                report.dump(1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  return is_whole ? kExitSuccess : kExitFailure;
}

}  // namespace

void register_data_audit(CLI::App& data, CommandContext& context) {
  const auto options = std::make_shared<AuditOptions>();
  CLI::App* command = data.add_subcommand(
      "audit", "check every shard; with a recipe, what its steps read and the epochs they reach");
  command->add_option("recipe", options->recipe.path, "recipe file (optional)");
  command->add_option("--set", options->recipe.overrides, "path.to.key=value, as for train");
  command
      ->add_option("--data", options->data_folder, "folder of token shards, from `openmoe prepare`")
      ->required();
  command->add_option("--step", options->first_step, "first step to read")->capture_default_str();
  command->add_option("--steps", options->num_steps, "number of steps to read")
      ->capture_default_str();
  command->add_option("--compare-tokenizer", options->other_tokenizer,
                      "another SentencePiece model: tokens and distinct ids of both, by source");
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options, &context] {
    context.run = [options, &context] { return run_audit(*options, context); };
  });
}

}  // namespace openmoe
