// openmoe data: looks into prepared data. `show` prints the exact rows of any step.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/command.h"
#include "apps/mixtures.h"
#include "apps/row_json.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/recipe_io.h"
#include "data/batch_stream.h"
#include "data/tokenizer.h"

namespace openmoe {
namespace {

struct ShowOptions {
  RecipeOptions recipe;
  std::string data_folder;
  std::int64_t step = 0;
  std::int64_t first_row = 0;
  std::int64_t num_rows = 1;
  bool json = false;
};

void print_row(const nlohmann::ordered_json& row) {
  const bool colour = isatty(STDOUT_FILENO) != 0;
  const auto paint = [&](const char* code) { return colour ? code : ""; };
  std::printf("%sstep %lld, row %lld, source %s%s\n", paint("\033[1m"),
              row["step"].get<long long>(), row["row"].get<long long>(),
              row["source"].get<std::string>().c_str(), paint("\033[0m"));
  for (const auto& name : row["examples"])
    std::printf("  example: %s\n", name.get<std::string>().c_str());
  for (const auto& document : row["documents"])
    std::printf(
        "  from %s, document %lld (record %lld of %s%s%s), epoch %lld, tokens %lld to %lld\n",
        document["shard"].get<std::string>().c_str(), document["document"].get<long long>(),
        document["record"].get<long long>(), document["input_file"].get<std::string>().c_str(),
        document["tag"].get<std::string>().empty() ? "" : ", tag ",
        document["tag"].get<std::string>().c_str(), document["epoch"].get<long long>(),
        document["first_token"].get<long long>(),
        document["first_token"].get<long long>() + document["num_tokens"].get<long long>() - 1);
  for (const auto& part : row["stretches"]) {
    const bool loss = part["loss_weight"].get<float>() > 0.0f;
    const bool padding = part["segment"] == 0;
    std::printf("  positions %lld to %lld, %s\n", part["begin"].get<long long>(),
                part["end"].get<long long>() - 1,
                padding
                    ? "padding"
                    : concat("segment ", part["segment"].get<int>(), loss ? ", loss" : ", no loss")
                          .c_str());
    if (!padding)
      std::printf("%s%s%s\n", paint(loss ? "\033[32m" : "\033[36m"),
                  part["text"].get<std::string>().c_str(), paint("\033[0m"));
  }
}

int run_show(const ShowOptions& options, CommandContext& context) {
  if (context.mpi.world_rank() != 0) return kExitSuccess;
  const Recipe recipe = load_recipe(options.recipe.path, options.recipe.overrides);
  if (options.first_row < 0 || options.num_rows < 1 ||
      options.first_row + options.num_rows > recipe.data.batch_rows || options.step < 0)
    throw UserError(concat("rows ", options.first_row, " to ",
                           options.first_row + options.num_rows - 1, " of step ", options.step,
                           ": a step has rows 0 to ", recipe.data.batch_rows - 1,
                           " and steps count from 0"));
  BatchStream stream(recipe, options.data_folder, load_mixtures(recipe, options.recipe.path));
  Batch batch;
  stream.read(options.step, options.first_row, options.first_row + options.num_rows, batch);
  for (std::int64_t row = 0; row < options.num_rows; ++row) {
    const nlohmann::ordered_json json =
        row_as_json(stream, options.step, options.first_row, batch, row);
    if (options.json)
      std::printf("%s\n", to_line(json).c_str());
    else
      print_row(json);
  }
  return kExitSuccess;
}

void register_show(CLI::App& data, CommandContext& context) {
  const auto options = std::make_shared<ShowOptions>();
  CLI::App* command = data.add_subcommand(
      "show", "print rows of a step as text, with segments, loss marks and documents");
  add_recipe_options(*command, options->recipe);
  command
      ->add_option("--data", options->data_folder, "folder of token shards, from `openmoe prepare`")
      ->required();
  command->add_option("--step", options->step, "step, from 0")->capture_default_str();
  command->add_option("--row", options->first_row, "first row of the global batch")
      ->capture_default_str();
  command->add_option("--rows", options->num_rows, "number of rows")->capture_default_str();
  command->add_flag("--json", options->json, "one JSON object per row, with all ids");
  command->callback([options, &context] {
    context.run = [options, &context] { return run_show(*options, context); };
  });
}

}  // namespace

void register_data(CLI::App& app, CommandContext& context) {
  CLI::App* data = app.add_subcommand("data", "look into prepared data");
  data->require_subcommand(1);
  data->fallthrough();
  register_show(*data, context);
  register_data_audit(*data, context);
  register_data_summary(*data, context);
  register_data_bench(*data, context);
}

}  // namespace openmoe
