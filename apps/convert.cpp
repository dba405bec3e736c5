// openmoe convert FROM TO: which way is seen from what FROM holds.
#include "apps/convert.h"

#include <cmath>
#include <map>

#include "apps/agree.h"
#include "apps/command.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

struct ConvertOptions {
  std::string from, to;
  std::vector<std::string> overrides;
  std::string layout, dtype, file_size, tokenizer;
};

// "5GB" in decimal, "5GiB" in binary units, or a number of bytes.
std::int64_t parse_size(const std::string& text) {
  static const std::map<std::string, double> kUnits = {
      {"", 1.0},       {"KB", 1e3},     {"MB", 1e6},    {"GB", 1e9},
      {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}};
  std::size_t end = 0;
  double number = -1.0;
  try {
    number = std::stod(text, &end);
  } catch (const std::exception&) {
  }
  const auto unit = kUnits.find(text.substr(end));
  const double bytes = unit == kUnits.end() ? -1.0 : number * unit->second;
  if (!(bytes >= 1.0 && bytes <= 9e15))
    throw UserError("--max-file-size " + text + ": allowed: a size such as 500MB, 10GB or 4GiB");
  return static_cast<std::int64_t>(bytes);
}

void convert(const ConvertOptions& options) {
  if (!is_checkpoint_or_run(options.from)) {
    const std::pair<const char*, const std::string&> of_export[] = {
        {"--layout", options.layout},
        {"--dtype", options.dtype},
        {"--max-file-size", options.file_size},
        {"--tokenizer", options.tokenizer}};
    for (const auto& [name, value] : of_export)
      if (!value.empty())
        throw UserError(std::string(name) + ": is for writing the Hugging Face layout, but " +
                        options.from + " holds no checkpoint of ours");
    import_hf({options.from, options.to, options.overrides});
    return;
  }
  if (!options.overrides.empty())
    throw UserError("--set: is for reading the Hugging Face layout, but " + options.from +
                    " is a checkpoint of ours, which has its recipe");
  ExportOptions wanted;
  wanted.from = options.from;
  wanted.to = options.to;
  if (options.layout == "split") wanted.layout = HfLayout::split;
  if (options.dtype == "f16") wanted.type = WeightType::f16;
  if (options.dtype == "bf16") wanted.type = WeightType::bf16;
  if (!options.file_size.empty()) wanted.max_file_bytes = parse_size(options.file_size);
  wanted.tokenizer = options.tokenizer;
  export_hf(wanted);
}

}  // namespace

void register_convert(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<ConvertOptions>();
  CLI::App* command = app.add_subcommand(
      "convert", "checkpoints to and from the Hugging Face layout; the way follows from FROM");
  command
      ->add_option(
          "FROM", options->from,
          "a Hugging Face folder (config.json with safetensors or PyTorch .bin), or a run or "
          "checkpoint folder of ours")
      ->required();
  command->add_option("TO", options->to, "folder to make: a run folder, or a Hugging Face folder")
      ->required();
  command
      ->add_option("--set", options->overrides,
                   "path.to.key=value over the recipe made from config.json; may be repeated")
      ->allow_extra_args(false);
  command
      ->add_option("--layout", options->layout,
                   "of experts: stacked, as released (default), or split, a weight each")
      ->check(CLI::IsMember({"stacked", "split"}));
  command->add_option("--dtype", options->dtype, "of the weights written: f32 (default), bf16, f16")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  command->add_option("--max-file-size", options->file_size,
                      "of each safetensors file, such as 5GB; default 10GB");
  command->add_option(
      "--tokenizer", options->tokenizer,
      "tokenizer file, or folder of such files, to put beside the weights; default: "
      "those that came with an import");
  command->callback([&context, options] {
    context.run = [&context, options] {
      on_root(context.mpi.world(), [&] { convert(*options); });
      return kExitSuccess;
    };
  });
}

}  // namespace openmoe
