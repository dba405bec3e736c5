#include "apps/analyze_subjects.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <set>

#include "apps/agree.h"
#include "apps/checkpoint.h"
#include "apps/decode_model.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/recipe_io.h"
#include "data/record_reader.h"
#include "data/routing_log.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kDefaultPositions = 65536;

struct Named {
  std::string name, path;
};

// NAME=PATH; a path that exists is taken as it is, whatever it contains.
Named split_name(const std::string& text) {
  const std::size_t at = text.find('=');
  if (at == std::string::npos || fs::exists(text)) return {"", text};
  return {text.substr(0, at), text.substr(at + 1)};
}

struct Checkpoint {
  std::string run, path;
  std::int64_t step = -1;
};

std::vector<Checkpoint> find_checkpoints(const SubjectOptions& options) {
  std::vector<Checkpoint> found;
  std::map<std::string, fs::path> folder_of;
  for (const std::string& text : options.checkpoints) {
    const Named named = split_name(text);
    const std::string newest = require_checkpoint(named.path);
    const fs::path run = fs::absolute(newest).lexically_normal().parent_path().parent_path();
    const std::string name = named.name.empty() ? run.filename().string() : named.name;
    const auto [other, is_new] = folder_of.emplace(name, run);
    if (!is_new && other->second != run)
      throw UserError(concat(other->second.string(), " and ", run.string(),
                             " would both be called ", name, "; name them: NAME=FOLDER"));
    std::vector<std::string> paths = {newest};
    const bool is_run = fs::exists(fs::path(named.path) / "checkpoints");
    if (options.every_checkpoint && is_run) {
      paths.clear();
      for (const auto& entry : fs::directory_iterator(fs::path(named.path) / "checkpoints"))
        if (fs::exists(entry.path() / "manifest.json") &&
            entry.path().filename().string().starts_with("step-"))
          paths.push_back(entry.path());
      std::sort(paths.begin(), paths.end());
    }
    for (const std::string& path : paths)
      found.push_back({name, path, read_checkpoint_meta(path).step});
  }
  return found;
}

// The most positions of each source: N for all, SOURCE=N for one.
void set_positions(std::vector<StudySource>& sources, const std::vector<std::string>& texts) {
  std::int64_t general = kDefaultPositions;
  std::map<std::string, std::int64_t> special;
  for (const std::string& text : texts) {
    const std::size_t at = text.rfind('=');
    const std::string digits = at == std::string::npos ? text : text.substr(at + 1);
    std::int64_t number = 0;
    const char* const end = digits.data() + digits.size();
    const auto [stop, error] = std::from_chars(digits.data(), end, number);
    if (error != std::errc() || stop != end || number < 1)
      throw UserError("--positions " + text + ": allowed: N or SOURCE=N, N at least 1");
    if (at == std::string::npos) {
      general = number;
      continue;
    }
    const std::string name = text.substr(0, at);
    if (std::none_of(sources.begin(), sources.end(),
                     [&](const StudySource& source) { return source.name == name; }))
      throw UserError("--positions " + text + ": no source has this name");
    special[name] = number;
  }
  for (StudySource& source : sources)
    source.positions = special.count(source.name) > 0 ? special[source.name] : general;
}

std::vector<StudySource> read_sources(const SubjectOptions& options, const Tokenizer& tokenizer) {
  std::vector<StudySource> sources;
  if (!options.data_folder.empty())
    sources = read_study_shards(options.data_folder, options.sources,
                                options.split == "train" ? Split::train : Split::validation);
  for (const std::string& text : options.inputs) {
    const Named named = split_name(text);
    const auto inputs = list_inputs(named.path);
    for (const InputInfo& input : inputs)
      sources.push_back(
          read_study_file(named.name.empty() || inputs.size() > 1 ? input.stem : named.name,
                          input.path, tokenizer));
  }
  // A text read twice would be in both halves of a prediction.
  std::set<std::string> names;
  for (const StudySource& source : sources)
    if (!names.insert(source.name).second)
      throw UserError(concat("source ", source.name,
                             " is named twice; leave one out, or name another: NAME=FILE"));
  set_positions(sources, options.positions);
  return sources;
}

void check_vocabulary(const std::vector<StudySource>& sources, std::int64_t vocab_size) {
  for (const StudySource& source : sources)
    for (const StudyDocument& document : source.documents)
      for (const std::int32_t id : document.ids)
        if (id >= vocab_size)
          throw UserError(concat("source ", source.name, " has the token id ", id,
                                 ", the model's vocabulary ends at ", vocab_size - 1,
                                 "; its text was made with another tokenizer"));
}

std::vector<std::string> pieces_of(const Tokenizer& tokenizer) {
  std::vector<std::string> pieces;
  for (std::int64_t id = 0; id < tokenizer.vocab_size(); ++id)
    pieces.push_back(tokenizer.piece(static_cast<std::int32_t>(id)));
  return pieces;
}

void observe_checkpoints(Subjects& subjects, const SubjectOptions& options,
                         CommandContext& context) {
  std::vector<Checkpoint> checkpoints;
  std::unique_ptr<StudyText> text;
  on_every_rank(context.mpi.world(), [&] {
    checkpoints = find_checkpoints(options);
    const std::string& first = checkpoints.front().path;
    const Recipe recipe =
        parse_recipe(read_checkpoint_meta(first).recipe_json, first + ": its recipe");
    const auto tokenizer = open_tokenizer(options.tokenizer, first, recipe);
    const std::vector<StudySource> sources = read_sources(options, *tokenizer);
    for (const Checkpoint& checkpoint : checkpoints)
      check_vocabulary(sources, parse_recipe(read_checkpoint_meta(checkpoint.path).recipe_json,
                                             checkpoint.path + ": its recipe")
                                    .model.vocab_size);
    subjects.pieces = pieces_of(*tokenizer);
    text = std::make_unique<StudyText>(
        sources, options.length > 0 ? options.length : recipe.data.sequence_length);
  });
  ObserveOptions observe = options.observe;
  observe.dropless = options.capacity == "dropless";
  for (const Checkpoint& checkpoint : checkpoints) {
    ObservedRouting observed = observe_routing(checkpoint.path, *text, observe, context);
    if (subjects.rules.empty()) {
      const RoutingConfig& routing = observed.routing;
      subjects.group_tokens = routing.group_tokens;
      const auto add_rule = [&](double factor) {
        subjects.rules.push_back(
            {routing.capacity_counts, factor, routing.group_tokens, routing.min_capacity});
      };
      add_rule(routing.capacity_factor);
      if (routing.eval_capacity_factor != routing.capacity_factor)
        add_rule(routing.eval_capacity_factor);
    }
    AnalysedModel model;
    model.run = checkpoint.run;
    model.step = checkpoint.step;
    for (const SourceLoss& loss : observed.losses)
      model.losses.emplace_back(loss.source, loss.loss);
    model.trace = std::move(observed.trace);
    on_root(context.mpi.world(), [&] {
      if (!options.log_folder.empty()) {
        fs::create_directories(options.log_folder);
        write_routing_log(concat(options.log_folder, "/", model.run, "-", model.step, ".h5"),
                          {model.trace, model.run, model.step, subjects.pieces});
      }
      for (LayerTrace& layer : model.trace.layers) layer.gate = {};  // no figure reads them
      std::printf("read the routing of %s\n", model.label().c_str());
      std::fflush(stdout);
    });
    subjects.models.push_back(std::move(model));
  }
}

// Traces of different models cannot be laid over each other.
void check_comparable(const std::vector<AnalysedModel>& models) {
  const RoutingTrace& first = models.front().trace;
  for (const AnalysedModel& model : models)
    if (model.trace.num_experts != first.num_experts || model.trace.top_k != first.top_k ||
        model.trace.layers.size() != first.layers.size())
      throw UserError(concat(model.label(), ": has ", model.trace.num_experts, " experts, ",
                             model.trace.top_k, " choices and ", model.trace.layers.size(),
                             " MoE layers, ", models.front().label(), " has ", first.num_experts,
                             ", ", first.top_k, " and ", first.layers.size(),
                             "; analyse them one by one"));
}

}  // namespace

void add_subject_options(CLI::App& command, SubjectOptions& options) {
  command.add_option("CHECKPOINT", options.checkpoints,
                     "run folder (its latest checkpoint) or checkpoint folder; NAME=PATH names it");
  command.add_flag("--every-checkpoint", options.every_checkpoint,
                   "all checkpoints of each run folder, not only the latest");
  command.add_option("--log", options.logs,
                     "routing log instead of checkpoints (data/routing_log.h), or NAME=FILE");
  command.add_option("--data", options.data_folder, "folder of token shards: held-out documents");
  command.add_option("--sources", options.sources, "only these folders of --data");
  command
      .add_option("--split", options.split, "of --data: held-out documents or those of training")
      ->check(CLI::IsMember({"validation", "train"}))
      ->capture_default_str();
  command.add_option("--input", options.inputs,
                     "JSON Lines or text, as for prepare; NAME=FILE names the source");
  command.add_option("--positions", options.positions,
                     "most positions of every source, or SOURCE=N of one; default 65536");
  command.add_option("--length", options.length, "positions of a row; default: as in training")
      ->check(CLI::PositiveNumber);
  add_tokenizer_options(command, options.tokenizer);
  command
      .add_option("--capacity", options.capacity,
                  "of the experts while the text is read: that of evaluation in the recipe, or "
                  "dropless")
      ->check(CLI::IsMember({"recipe", "dropless"}))
      ->capture_default_str();
  command
      .add_option("--compute-type", options.observe.compute_type,
                  "f32 or bf16; default: as the recipe says")
      ->check(CLI::IsMember({"f32", "bf16"}));
  command.add_option("--write-logs", options.log_folder,
                     "folder for the routing of each checkpoint as a routing log");
  command.add_option("--ep", options.observe.ep, "ranks that share the experts")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_device_options(command, options.observe.device);
}

Subjects read_subjects(const SubjectOptions& options, CommandContext& context) {
  Subjects subjects;
  if (options.checkpoints.empty() == options.logs.empty())
    throw UserError(
        "analyze: say what: checkpoints with --data or --input, or --log, and not both");
  if (!options.checkpoints.empty()) {
    if (options.data_folder.empty() && options.inputs.empty())
      throw UserError("analyze: say on which text: --data with shards, --input with JSON Lines");
    observe_checkpoints(subjects, options, context);
  } else {
    on_root(context.mpi.world(), [&] {
      for (const std::string& text : options.logs) {
        const Named named = split_name(text);
        RoutingLog log = read_routing_log(named.path);
        AnalysedModel model;
        model.run = !named.name.empty() ? named.name
                    : log.name.empty()  ? fs::path(named.path).stem().string()
                                        : log.name;
        model.step = log.step;
        model.trace = std::move(log.trace);
        if (subjects.pieces.empty()) subjects.pieces = std::move(log.pieces);
        subjects.models.push_back(std::move(model));
      }
    });
  }
  on_root(context.mpi.world(), [&] { check_comparable(subjects.models); });
  return subjects;
}

}  // namespace openmoe
