#include "apps/analyze_subjects.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
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
  Recipe recipe;
  std::string tokenizer_sha256;  // "": not recorded
};

std::vector<Checkpoint> find_checkpoints(const SubjectOptions& options) {
  std::vector<Checkpoint> found;
  std::map<std::string, fs::path> folder_of;
  for (const std::string& text : options.checkpoints) {
    const Named named = split_name(text);
    const std::string newest = require_checkpoint(named.path);
    const fs::path run = fs::absolute(newest).lexically_normal().parent_path().parent_path();
    const std::string name = named.name.empty() ? run.filename().string() : named.name;
    if (!options.log_folder.empty() && name.find('/') != std::string::npos)
      throw UserError(
          text + ": the name " + name +
          " holds a \"/\", but --write-logs makes it the name of a file; choose another");
    const auto [other, is_new] = folder_of.emplace(name, run);
    if (!is_new && other->second != run)
      throw UserError(concat(other->second.string(), " and ", run.string(),
                             " would both be called ", name, "; name them: NAME=FOLDER"));
    std::vector<std::string> paths = {newest};
    if (options.every_checkpoint) {
      std::error_code error;
      paths.clear();
      for (const auto& entry : fs::directory_iterator(fs::path(named.path) / "checkpoints", error))
        if (fs::exists(entry.path() / "manifest.json") &&
            entry.path().filename().string().starts_with("step-"))
          paths.push_back(entry.path());
      if (error)
        throw UserError(named.path +
                        ": is no run folder, but a single checkpoint; --every-checkpoint means all "
                        "those of a run: name its folder, or leave the option out");
      std::sort(paths.begin(), paths.end());
    }
    for (const std::string& path : paths) {
      CheckpointMeta meta = read_checkpoint_meta(path);
      Recipe recipe = parse_recipe(meta.recipe_json, path + ": its recipe");
      found.push_back({name, path, meta.step, std::move(recipe), meta.tokenizer_sha256});
    }
  }
  return found;
}

// Those of one name by their steps, in whatever order they were named: the last is the newest.
// Names stay in the order of their first.
template <typename Subject>
void sort_steps(std::vector<Subject>& subjects) {
  std::map<std::string, std::size_t> place;
  for (const Subject& subject : subjects) place.emplace(subject.run, place.size());
  std::stable_sort(subjects.begin(), subjects.end(), [&](const Subject& a, const Subject& b) {
    return std::pair(place.at(a.run), a.step) < std::pair(place.at(b.run), b.step);
  });
}

// Checkpoints or logs of one name are the course of one run.
template <typename Subject>
void check_steps(const std::vector<Subject>& subjects) {
  std::set<std::pair<std::string, std::int64_t>> seen;
  for (const Subject& subject : subjects)
    if (!seen.insert({subject.run, subject.step}).second)
      throw UserError(concat(subject.run, subject.step < 0 ? "" : concat(", step ", subject.step),
                             ": stands there twice; leave one out, or name them: NAME=PATH"));
}

// The text's ids mean something to the model only when both come of one tokenizer.
void check_tokenizer(const std::vector<Checkpoint>& checkpoints, const Tokenizer& tokenizer,
                     const TokenizerOptions& options) {
  for (const Checkpoint& checkpoint : checkpoints) {
    const std::string& recorded = checkpoint.tokenizer_sha256;
    if (recorded.empty() || recorded == tokenizer.hash()) continue;
    throw UserError(
        concat(options.file.empty() ? tokenizer.path() : "--tokenizer " + options.file, " with ",
               tokenizer.num_sentinels(), " sentinels is not the tokenizer of ", checkpoint.path,
               " (its hash is ", tokenizer.hash(), ", of training ", recorded,
               "); leave --tokenizer and --sentinels out where the run keeps its own, and analyse "
               "checkpoints of different tokenizers one by one"));
  }
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
                                options.split == "train" ? Split::train : Split::validation,
                                tokenizer.hash());
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

// Traces of different models cannot be laid over each other.
struct RouterShape {
  std::int64_t num_experts, top_k;
  std::vector<std::int64_t> layers;  // their numbers
  bool operator==(const RouterShape&) const = default;
  std::string text() const {
    std::string numbers;
    for (const std::int64_t layer : layers) numbers += concat(numbers.empty() ? "" : ", ", layer);
    return concat(num_experts, " experts, ", top_k, " choices and the MoE layers ", numbers);
  }
};
RouterShape shape_of(const Recipe& recipe) {
  RouterShape shape{recipe.model.num_experts, 2, {}};
  for (std::int64_t layer = 0; layer < recipe.model.num_layers; ++layer)
    if (recipe.model.is_moe_layer(layer)) shape.layers.push_back(layer);
  return shape;
}
RouterShape shape_of(const RoutingTrace& trace) {
  RouterShape shape{trace.num_experts, trace.top_k, {}};
  for (const LayerTrace& layer : trace.layers) shape.layers.push_back(layer.layer);
  return shape;
}
void check_comparable(const std::string& name, const RouterShape& shape, const std::string& first,
                      const RouterShape& first_shape) {
  if (!(shape == first_shape))
    throw UserError(concat(name, ": has ", shape.text(), ", ", first, " has ", first_shape.text(),
                           "; analyse them one by one"));
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

// The folder for logs of checkpoints; on one rank.
void make_log_folder(const std::string& folder) {
  if (folder.empty()) return;
  std::error_code error;
  fs::create_directories(folder, error);
  if (!error && ::access(folder.c_str(), W_OK) != 0)
    error = std::error_code(errno, std::generic_category());
  if (error)
    throw UserError(concat("--write-logs ", folder, ": cannot be a folder to write to: ",
                           error.message(), "; name another"));
}

// Everything that can be wrong is found before the first weights are read.
std::unique_ptr<StudyText> prepare_text(const std::vector<Checkpoint>& checkpoints,
                                        const SubjectOptions& options, SubjectFacts& facts,
                                        bool is_root) {
  const Checkpoint& first = checkpoints.front();
  const auto tokenizer = open_tokenizer(options.tokenizer, first.path, first.recipe);
  check_tokenizer(checkpoints, *tokenizer, options.tokenizer);
  const std::vector<StudySource> sources = read_sources(options, *tokenizer);
  for (const Checkpoint& checkpoint : checkpoints) {
    check_comparable(checkpoint.path, shape_of(checkpoint.recipe), first.path,
                     shape_of(first.recipe));
    check_vocabulary(sources, checkpoint.recipe.model.vocab_size);
    if (checkpoint.tokenizer_sha256.empty() && is_root)
      std::fprintf(
          stderr,
          "warning: %s does not record its tokenizer (imported, or older than the record): "
          "that it is the one named or kept with it is taken on trust\n",
          checkpoint.path.c_str());
  }
  facts.pieces = pieces_of(*tokenizer);
  facts.layers = shape_of(first.recipe).layers;
  auto text = std::make_unique<StudyText>(
      sources, options.length > 0 ? options.length : first.recipe.data.sequence_length,
      options.document_positions);
  facts.texts = {&text->trace()};
  return text;
}

void observe_checkpoints(Subjects& subjects, const SubjectOptions& options,
                         const std::function<void(const SubjectFacts&)>& check,
                         CommandContext& context) {
  std::vector<Checkpoint> checkpoints;
  std::unique_ptr<StudyText> text;
  on_root(context.mpi.world(), [&] { make_log_folder(options.log_folder); });
  on_every_rank(context.mpi.world(), [&] {
    checkpoints = find_checkpoints(options);
    check_steps(checkpoints);
    sort_steps(checkpoints);
    SubjectFacts facts;
    text = prepare_text(checkpoints, options, facts, context.mpi.world().rank_in_group() == 0);
    check(facts);
    subjects.pieces = std::move(facts.pieces);
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
      if (routing.eval_capacity_factor != routing.capacity_factor &&
          routing.capacity_counts != CapacityCounts::dropless)
        add_rule(routing.eval_capacity_factor);
    }
    AnalysedModel model;
    model.run = checkpoint.run;
    model.step = checkpoint.step;
    for (const SourceLoss& loss : observed.losses)
      model.losses.emplace_back(loss.source, loss.loss);
    model.trace = std::move(observed.trace);
    on_root(context.mpi.world(), [&] {
      if (!options.log_folder.empty())
        write_routing_log(concat(options.log_folder, "/", model.run, "-", model.step, ".h5"),
                          {model.trace, model.run, model.step, subjects.pieces, {}});
      for (LayerTrace& layer : model.trace.layers) layer.gate = {};  // no figure reads them
      std::printf("read the routing of %s\n", model.label().c_str());
      std::fflush(stdout);
    });
    subjects.models.push_back(std::move(model));
  }
}

void read_logs(Subjects& subjects, const std::vector<std::string>& logs) {
  std::map<std::string, fs::path> folder_of;
  for (const std::string& text : logs) {
    const Named named = split_name(text);
    RoutingLog log = read_routing_log(named.path);
    AnalysedModel model;
    model.run = !named.name.empty() ? named.name
                : log.name.empty()  ? fs::path(named.path).stem().string()
                                    : log.name;
    model.step = log.step;
    model.trace = std::move(log.trace);
    // Two trainings of one recipe call themselves alike; each writes to a folder of its own.
    const fs::path folder = fs::absolute(named.path).lexically_normal().parent_path();
    const auto [other, is_new] = folder_of.emplace(model.run, folder);
    if (!is_new && named.name.empty() && other->second != folder)
      throw UserError(concat(named.path, " and a log in ", other->second.string(),
                             " both call themselves ", model.run, "; name them: NAME=FILE"));
    if (subjects.pieces.empty()) subjects.pieces = log.pieces;
    if (!log.pieces.empty() && log.pieces != subjects.pieces)
      throw UserError(concat(named.path, ": has another vocabulary than ",
                             subjects.models.front().label(), "; analyse them one by one"));
    subjects.models.push_back(std::move(model));
    check_comparable(subjects.models.back().label(), shape_of(subjects.models.back().trace),
                     subjects.models.front().label(), shape_of(subjects.models.front().trace));
  }
  check_steps(subjects.models);
  sort_steps(subjects.models);
}

// Those that say how checkpoints are read.
void add_checkpoint_options(CLI::App& command, SubjectOptions& options) {
  command.add_flag("--every-checkpoint", options.every_checkpoint,
                   "all checkpoints of each run folder, not only the latest");
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
  command
      .add_option("--document-positions", options.document_positions,
                  "most positions of every document, so that long ones leave room for others; "
                  "default: all")
      ->check(whole_number(1));
  command.add_option("--length", options.length, "positions of a row; default: as in training")
      ->check(whole_number(1));
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
      ->check(whole_number(1))
      ->capture_default_str();
  add_device_options(command, options.observe.device);
}

}  // namespace

void add_subject_options(CLI::App& command, SubjectOptions& options) {
  options.command = &command;
  command.add_option("CHECKPOINT", options.checkpoints,
                     "run folder (its latest checkpoint) or checkpoint folder; NAME=PATH names it");
  command.add_option("--log", options.logs,
                     "routing log instead of checkpoints (data/routing_log.h), or NAME=FILE");
  const std::size_t before = command.get_options().size();
  add_checkpoint_options(command, options);
  const std::vector<CLI::Option*> all = command.get_options();
  options.of_checkpoints.assign(all.begin() + static_cast<std::ptrdiff_t>(before), all.end());
}

Subjects read_subjects(const SubjectOptions& options,
                       const std::function<void(const SubjectFacts&)>& check,
                       CommandContext& context) {
  Subjects subjects;
  if (options.checkpoints.empty() == options.logs.empty())
    throw UserError(
        "analyze: say what: checkpoints with --data or --input, or --log, and not both");
  if (!options.checkpoints.empty()) {
    if (options.data_folder.empty() && options.inputs.empty())
      throw UserError("analyze: say on which text: --data with shards, --input with JSON Lines");
    for (const char* name : {"--sources", "--split"})
      if (options.data_folder.empty() && options.command->get_option(name)->count() > 0)
        throw UserError(concat(name, ": says what of --data is read, which is not given"));
    observe_checkpoints(subjects, options, check, context);
    return subjects;
  }
  for (const CLI::Option* option : options.of_checkpoints)
    if (option->count() > 0)
      throw UserError(concat(option->get_name(),
                             ": says how checkpoints are read, but --log is of routing that is "
                             "recorded already; leave one of the two out"));
  on_root(context.mpi.world(), [&] {
    read_logs(subjects, options.logs);
    SubjectFacts facts;
    facts.pieces = subjects.pieces;
    facts.layers = shape_of(subjects.models.front().trace).layers;
    for (const AnalysedModel& model : subjects.models) facts.texts.push_back(&model.trace);
    check(facts);
  });
  return subjects;
}

}  // namespace openmoe
