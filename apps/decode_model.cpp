#include "apps/decode_model.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "apps/agree.h"
#include "apps/checkpoint.h"
#include "apps/checkpoint_reader.h"
#include "apps/convert_files.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/enum_names.h"
#include "core/config/recipe_io.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizerFile = "tokenizer.model";
constexpr const char* kTokenizerFacts = "openmoe_tokenizer.json";
constexpr std::int64_t kSlabBytes = 64 << 20;
// OpenMoE appended 300 sentinels to umT5's 256,000 pieces, where T5 has 100.
constexpr std::int64_t kReleasedVocabulary = 256384, kReleasedSentinels = 300;

// The only *.model file that a run or an import keeps; "" when there is none.
fs::path kept_tokenizer(const std::string& checkpoint) {
  const fs::path run = fs::absolute(checkpoint).lexically_normal().parent_path().parent_path();
  std::vector<fs::path> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(run / kCompanionFolder, ignored))
    if (entry.path().extension() == ".model") found.push_back(entry.path());
  std::sort(found.begin(), found.end());
  if (found.size() > 1)
    throw UserError(concat((run / kCompanionFolder).string(), ": holds ", found.size(),
                           " .model files; say which is the tokenizer's with --tokenizer"));
  return found.empty() ? fs::path() : found[0];
}

std::int64_t kept_sentinels(const fs::path& tokenizer, const Recipe& recipe) {
  std::ifstream facts(tokenizer.parent_path() / kTokenizerFacts);
  if (facts) {
    const auto json = nlohmann::json::parse(facts, nullptr, false);
    if (json.is_object() && json.value("sentinels", -1) >= 0) return json["sentinels"];
  }
  return recipe.model.vocab_size == kReleasedVocabulary ? kReleasedSentinels
                                                        : Tokenizer::kSentinelsOfModel;
}

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const TokenizerOptions& options,
                                          const std::string& checkpoint, const Recipe& recipe) {
  const fs::path path = options.file.empty() ? kept_tokenizer(checkpoint) : fs::path(options.file);
  if (path.empty())
    throw UserError(checkpoint +
                    ": no tokenizer was kept with it; name the SentencePiece model file with "
                    "--tokenizer");
  const std::int64_t sentinels =
      options.num_sentinels >= 0 ? options.num_sentinels : kept_sentinels(path, recipe);
  std::unique_ptr<Tokenizer> tokenizer;
  try {
    tokenizer = std::make_unique<Tokenizer>(path.string(), sentinels);
  } catch (const UserError&) {
    if (options.num_sentinels >= 0) throw;
    tokenizer = std::make_unique<Tokenizer>(path.string());  // the file holds its own
  }
  if (tokenizer->vocab_size() > recipe.model.vocab_size)
    throw UserError(concat(path.string(), ": has ", tokenizer->vocab_size(), " ids with ",
                           tokenizer->num_sentinels(), " sentinels, but the model's vocabulary is ",
                           recipe.model.vocab_size, "; name its own tokenizer with --tokenizer"));
  return tokenizer;
}

void add_tokenizer_options(CLI::App& command, TokenizerOptions& options) {
  command.add_option("--tokenizer", options.file,
                     "SentencePiece model file; default: the one kept with the run");
  command
      .add_option("--sentinels", options.num_sentinels,
                  "how many sentinels follow the pieces of the tokenizer; default: as the run says")
      ->check(CLI::NonNegativeNumber);
}

void add_decode_options(CLI::App& command, DecodeModelOptions& options) {
  command
      .add_option("RUN", options.folder, "run folder (its latest checkpoint) or checkpoint folder")
      ->required();
  command
      .add_option("--dtype", options.dtype, "of the weights in memory; sums are f32 in either case")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  add_tokenizer_options(command, options.tokenizer);
  command
      .add_option("--capacity", options.capacity,
                  "slots of an expert in a call: dropless (no token loses an expert, so a batch "
                  "does not change "
                  "results), or routing.capacity_counts' tokens, assignments or port over the "
                  "tokens of a call; "
                  "port is what the original's PyTorch code does")
      ->check(CLI::IsMember({"dropless", "tokens", "assignments", "port"}))
      ->capture_default_str();
  command
      .add_option("--max-length", options.max_length,
                  "positions of a sequence; default: data.sequence_length of the recipe")
      ->check(CLI::PositiveNumber);
  command.add_option("--batch", options.batch, "sequences computed at once")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command
      .add_option("--ep", options.ep,
                  "ranks that share the experts; default: as many as divide both ranks and experts")
      ->check(CLI::PositiveNumber);
  command
      .add_option("--tp", options.tp,
                  "ranks that share heads and rows of every matrix; --ep times --tp is the number "
                  "of ranks; the text is the same on every grid")
      ->check(CLI::PositiveNumber);
}

infer::DecodeOptions decode_options(const DecodeModelOptions& options, const Recipe& recipe) {
  infer::DecodeOptions decode;
  decode.max_sequences = options.batch;
  decode.max_length = options.max_length > 0 ? options.max_length : recipe.data.sequence_length;
  CapacityCounts rule;
  if (options.capacity != "dropless" && parse_enum(options.capacity, rule)) decode.capacity = rule;
  return decode;
}

DecodeModel::DecodeModel(const DecodeModelOptions& options, ProcessGrid& grid) {
  on_every_rank(grid.world(), [&] {
    checkpoint_ = require_checkpoint(options.folder);
    recipe_ =
        parse_recipe(read_checkpoint_meta(checkpoint_).recipe_json, checkpoint_ + ": its recipe");
    tokenizer_ = open_tokenizer(options.tokenizer, checkpoint_, recipe_);
    weights_ = std::make_unique<infer::DecodeWeights>(
        recipe_.model, options.dtype == "bf16" ? DType::bf16 : DType::f32, grid.ep(),
        grid.ep_rank(), grid.tp(), grid.tp_rank());
    load_weights();
  });
  infer::DecodeGroups groups;
  if (grid.ep() > 1)
    groups.expert_sum = [&grid](std::span<float> values) { grid.expert().all_reduce_sum(values); };
  if (grid.tp() > 1) {
    groups.tensor_sum = [&grid](std::span<float> values) { grid.tensor().all_reduce_sum(values); };
    groups.tensor_gather = [&grid](std::span<float> pieces, std::span<const std::int64_t> counts) {
      grid.tensor().all_gather(pieces, counts);
    };
  }
  decoder_ = std::make_unique<infer::Decoder>(*weights_, recipe_.routing,
                                              decode_options(options, recipe_), std::move(groups));
  generator_ = std::make_unique<infer::Generator>(*decoder_, num_ids());
}

std::int64_t DecodeModel::num_ids() const {
  return tokenizer_->vocab_size();
}

void DecodeModel::load_weights() {
  const CheckpointManifest manifest = read_manifest(checkpoint_);
  CheckpointReader reader(checkpoint_, manifest);
  const ParamTable table(recipe_.model, recipe_.optimizer);
  std::vector<float> slab;
  for (const Param& param : table.params()) {
    const CheckpointTensor* const source = manifest.find("value/" + param.name);
    if (source == nullptr || !(source->shape == param.global_shape))
      throw UserError(checkpoint_ + ": its tensor " + param.name + " is " +
                      (source == nullptr ? "missing" : source->shape.to_string()) +
                      ", its own recipe says " + param.global_shape.to_string());
    for (const infer::ParamBlock& block : weights_->blocks(param)) {
      infer::ParamBlock part = block;
      Shape shape = param.global_shape;
      shape.sizes[shape.rank - 1] = block.width();
      if (shape.rank == 1) shape.sizes[0] = block.end - block.begin;
      const std::int64_t row = shape.num_elements() / shape[0];
      const std::int64_t most = std::max<std::int64_t>(1, kSlabBytes / (row * size_of(DType::f32)));
      for (; part.begin < block.end; part.begin = part.end) {
        part.end = std::min(block.end, part.begin + most);
        shape.sizes[0] = part.end - part.begin;
        slab.resize(static_cast<std::size_t>(shape.num_elements()));
        const Tensor values = host_view(slab.data(), shape);
        reader.read(*source, part.begin, values, shape.rank == 3 ? part.first_column : 0);
        weights_->set(param, part, slab.data());
      }
    }
  }
}

DecodeGrid decode_grid(const DecodeModelOptions& options, const ModelConfig& model,
                       std::int64_t num_ranks, const std::string& place) {
  const std::int64_t experts = model.num_moe_layers() > 0 ? model.num_experts : 1;
  const std::int64_t most_tp = infer::TensorSplits::most_ranks(model);
  DecodeGrid grid{options.ep, options.tp};
  if (grid.ep == 0 && grid.tp > 0) grid.ep = std::max<std::int64_t>(1, num_ranks / grid.tp);
  if (grid.ep == 0) grid.ep = std::gcd(num_ranks, experts);
  if (grid.tp == 0) grid.tp = std::max<std::int64_t>(1, num_ranks / grid.ep);
  std::string allowed;
  for (std::int64_t ep = 1; ep <= std::min(num_ranks, experts); ++ep) {
    if (num_ranks % ep != 0 || experts % ep != 0 || num_ranks / ep > most_tp) continue;
    if (grid.ep == ep && grid.tp == num_ranks / ep) return grid;
    allowed += concat(allowed.empty() ? "" : ", or ", "--ep ", ep, " --tp ", num_ranks / ep);
  }
  if (allowed.empty()) allowed = "no grid of so many; start fewer ranks";
  throw UserError(
      concat(place, ": ", num_ranks, num_ranks == 1 ? " rank" : " ranks", " as --ep ", grid.ep,
             " --tp ", grid.tp, ": their product must be the number of ranks, ep divide ",
             model.num_moe_layers() > 0 ? concat("the ", experts, " experts") : "1 (a dense model)",
             " and tp be at most ", most_tp, " (", model.num_heads, " heads, d_model ",
             model.d_model, ", ffn_dim ", model.ffn_dim, "); allowed: ", allowed));
}

std::unique_ptr<ProcessGrid> make_decode_grid(Communicator& world,
                                              const DecodeModelOptions& options) {
  std::int64_t sizes[] = {0, 0};
  on_root(world, [&] {
    const std::string checkpoint = require_checkpoint(options.folder);
    const Recipe recipe =
        parse_recipe(read_checkpoint_meta(checkpoint).recipe_json, checkpoint + ": its recipe");
    const DecodeGrid grid = decode_grid(options, recipe.model, world.size(), checkpoint);
    sizes[0] = grid.ep;
    sizes[1] = grid.tp;
  });
  world.all_reduce_max(sizes);
  return std::make_unique<ProcessGrid>(world, sizes[0], sizes[1]);
}

void keep_tokenizer(const Tokenizer& tokenizer, const std::string& run_folder) {
  const fs::path folder = fs::path(run_folder) / kCompanionFolder;
  std::error_code error;
  fs::create_directories(folder, error);
  if (!error && fs::exists(folder / kTokenizerFacts)) return;  // a resumed run
  // An imported run has its tokenizer already.
  bool has_tokenizer = false;
  for (const auto& entry : fs::directory_iterator(folder, error))
    has_tokenizer = has_tokenizer || entry.path().extension() == ".model";
  if (!error && !has_tokenizer)
    fs::copy_file(tokenizer.path(), folder / kTokenizerFile, fs::copy_options::overwrite_existing,
                  error);
  std::ofstream facts(folder / kTokenizerFacts);
  facts << nlohmann::json{{"sentinels", tokenizer.num_sentinels()}}.dump() << "\n";
  facts.close();
  if (error || !facts)
    throw UserError(concat(folder.string(), ": cannot keep the tokenizer ", tokenizer.path(),
                           " there", error ? ": " + error.message() : ""));
}

}  // namespace openmoe
