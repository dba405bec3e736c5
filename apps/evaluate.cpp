// `openmoe evaluate RUN`: held-out loss by source, and scored tasks.
#include <cstdio>
#include <fstream>
#include <memory>

#include "apps/agree.h"
#include "apps/command.h"
#include "apps/decode_model.h"
#include "apps/evaluate_loss.h"
#include "apps/run_tasks.h"
#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

using OrderedJson = nlohmann::ordered_json;

struct EvaluateOptions {
  DecodeModelOptions model;
  LossOptions loss;
  TaskOptions tasks;
  std::string out_file;
  bool is_capacity_given = false;
};

void print_losses(const OrderedJson& losses) {
  std::printf("%-20s %9s %11s %9s %9s %12s\n", "source", "loss", "perplexity", "bits/byte",
              "accuracy", "loss tokens");
  for (const auto& row : losses)
    std::printf("%-20s %9.4f %11.3f %9.4f %9.4f %12lld\n", row["source"].get<std::string>().c_str(),
                row["loss"].get<double>(), row["perplexity"].get<double>(),
                row["bits_per_byte"].get<double>(), row["accuracy"].get<double>(),
                static_cast<long long>(row["loss_tokens"].get<std::int64_t>()));
}

void print_tasks(const OrderedJson& tasks) {
  for (const auto& row : tasks) {
    std::printf("%-32s %6lld examples", row["task"].get<std::string>().c_str(),
                static_cast<long long>(row["examples"].get<std::int64_t>()));
    for (const auto& item : row.items())
      if (item.value().is_number_float())
        std::printf("  %s %.4f", item.key().c_str(), item.value().get<double>());
    std::printf("\n");
  }
}

int run_evaluate(EvaluateOptions options, CommandContext& context) {
  if (options.loss.data_folder.empty() && options.tasks.files.empty())
    throw UserError(
        "evaluate: say what: --data with a folder of shards, --tasks with task files, or both");
  OrderedJson report = OrderedJson::object();
  if (options.is_capacity_given && options.tasks.files.empty())
    throw UserError(
        "--capacity: found without --tasks, allowed: with it; losses of --data have the recipe's "
        "capacity of evaluation");
  if (!options.loss.data_folder.empty()) {
    options.loss.folder = options.model.folder;
    options.loss.ep = options.model.ep > 0 ? options.model.ep : 1;
    options.loss.tp = options.model.tp > 0 ? options.model.tp : 1;
    report["losses"] = evaluate_loss(options.loss, context);
  }
  if (!options.tasks.files.empty()) {
    const auto grid = make_decode_grid(context.mpi.world(), options.model);
    DecodeModel model(options.model, *grid);
    report["tasks"] = run_tasks(options.tasks, model, context.mpi.world());
  }
  on_root(context.mpi.world(), [&] {
    if (report.contains("losses")) print_losses(report["losses"]);
    if (report.contains("tasks")) print_tasks(report["tasks"]);
    if (options.out_file.empty()) return;
    std::ofstream file(options.out_file, std::ios::trunc);
    file << report.dump(2) << "\n";
    file.close();
    if (!file) throw UserError("--out " + options.out_file + ": cannot be written");
  });
  return kExitSuccess;
}

}  // namespace

void register_evaluate(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<EvaluateOptions>();
  CLI::App* command =
      app.add_subcommand("evaluate", "loss by source, and scored tasks, of a checkpoint");
  add_decode_options(*command, options->model);
  LossOptions& loss = options->loss;
  CLI::Option* data = command->add_option("--data", loss.data_folder,
                                          "folder of token shards: loss of their held-out "
                                          "documents; ranks share the rows, and with --ep "
                                          "the experts too");
  command->add_option("--sources", loss.sources, "only these folders of --data")->needs(data);
  command->add_option("--objective", loss.objective, "rows of --data as this objective makes them")
      ->check(CLI::IsMember({"ul2", "causal_lm", "span_corruption", "prefix_lm", "sft"}))
      ->capture_default_str();
  command->add_option("--packing", loss.packing, "of those rows")
      ->check(CLI::IsMember({"faithful", "packed"}))
      ->capture_default_str();
  command->add_option("--rows", loss.num_rows, "rows of each source")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_device_options(*command, loss.device);
  command->add_option("--tasks", options->tasks.files,
                      "task files, such as recipes/tasks/piqa.json");
  command
      ->add_option("--task-data", options->tasks.data_folder,
                   "folder of the tasks' JSON Lines files")
      ->capture_default_str();
  command->add_option("--limit", options->tasks.limit, "examples of each task file; default: all")
      ->check(CLI::PositiveNumber);
  command->add_flag("--run-checkers", options->tasks.run_checkers,
                    "let checkers run the programs that the model writes");
  command->add_option("--samples", options->tasks.samples_file,
                      "JSON Lines with the outcome of every example");
  command->add_option("--out", options->out_file, "all numbers as JSON");
  command->callback([&context, command, options] {
    options->is_capacity_given = command->get_option("--capacity")->count() > 0;
    context.run = [&context, options] { return run_evaluate(*options, context); };
  });
}

}  // namespace openmoe
