// `openmoe analyze CHECKPOINT...`: how routers choose, as figures. The statistics are in
// core/routing, the figures in analysis*.cpp, their files in analysis_output.cpp.
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <memory>
#include <new>

#include "apps/agree.h"
#include "apps/analysis.h"
#include "apps/analysis_output.h"
#include "apps/analysis_text.h"
#include "apps/analyze_subjects.h"
#include "apps/command.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "data/audit.h"
#include "data/routing_log.h"

namespace openmoe {
namespace {

struct AnalyzeOptions {
  SubjectOptions subjects;
  AnalysisOptions analysis;
  std::vector<std::string> rules;
  std::vector<std::string> tokens;
  std::string other_tokenizer;
  std::string out_folder;
};

std::vector<DropRule> drop_rules(const AnalyzeOptions& options, const Subjects& subjects) {
  const std::int64_t T = subjects.models.front().trace.sequence_length;
  const std::int64_t G = subjects.group_tokens > 0 ? subjects.group_tokens : T;
  std::vector<DropRule> rules;
  for (const std::string& text : options.rules) rules.push_back(parse_drop_rule(text, G));
  if (!rules.empty()) return rules;
  // A log says nothing about capacity: as many slots as choices and a quarter more.
  if (subjects.rules.empty()) return {parse_drop_rule("assignments:1.25", T)};
  rules = subjects.rules;
  const DropRule port = parse_drop_rule("port:2", T);
  if (std::count(rules.begin(), rules.end(), port) == 0) rules.push_back(port);
  return rules;
}

// Ids of pieces as the vocabulary spells them ("▁the"), or "#12".
std::vector<std::int32_t> token_ids(const std::vector<std::string>& tokens,
                                    const std::vector<std::string>& pieces) {
  std::vector<std::int32_t> ids;
  for (const std::string& token : tokens) {
    const auto found = std::find(pieces.begin(), pieces.end(), token);
    std::int32_t id = static_cast<std::int32_t>(found - pieces.begin());
    if (found == pieces.end()) {
      const char* const end = token.data() + token.size();
      const char* const begin = token.data() + (token.starts_with("#") ? 1 : 0);
      const auto [stop, error] = std::from_chars(begin, end, id);
      if (begin == token.data() || error != std::errc() || stop != end || id < 0)
        throw UserError("--tokens " + token +
                        ": is no piece of the vocabulary; allowed: pieces as it spells them, with "
                        "\u2581 for a space, or #ID");
    }
    ids.push_back(id);
  }
  return ids;
}

// Table 10: the same text under two tokenizers.
Figure tokenizer_figure(const std::string& data_folder, const std::string& other) {
  Figure figure;
  figure.id = "tokenizers";
  figure.paper = "Table 10";
  figure.title = "Two tokenizers on the same texts";
  figure.definition =
      "Tokens and distinct ids of each source's training documents, and of each tag where a source "
      "has several, under the tokenizer of the data and under " +
      other + ".";
  figure.table.columns = {"source",       "tag",          "tokens",
                          "distinct_ids", "other_tokens", "other_distinct_ids"};
  BarPlot bars;
  bars.series = {"this tokenizer", "the other"};
  for (const TokenizerUse& use : compare_tokenizers(data_folder, other)) {
    figure.table.rows.push_back({use.source, use.tag, use.tokens[0], use.distinct_ids[0],
                                 use.tokens[1], use.distinct_ids[1]});
    if (!use.tag.empty()) continue;
    bars.groups.push_back(use.source);
    bars.values.push_back(
        {static_cast<double>(use.distinct_ids[0]), static_cast<double>(use.distinct_ids[1])});
  }
  if (!bars.groups.empty()) figure.plots.push_back({"distinct ids in use", "", "ids", bars});
  return figure;
}

AnalysisSubject describe(const Subjects& subjects, const AnalysisOptions& options,
                         const std::string& command) {
  const RoutingTrace& trace = subjects.models.front().trace;
  AnalysisSubject subject;
  subject.command = command;
  std::string models, sources, rules;
  for (const AnalysedModel& model : subjects.models)
    models += (models.empty() ? "" : ", ") + model.label();
  std::vector<std::int64_t> tokens(trace.sources.size(), 0);
  for (const std::int32_t document : trace.document)
    ++tokens[static_cast<std::size_t>(trace.documents[static_cast<std::size_t>(document)].source)];
  for (std::size_t s = 0; s < tokens.size(); ++s)
    sources += concat(s > 0 ? ", " : "", trace.sources[s], " ", tokens[s]);
  for (const DropRule& rule : options.rules) rules += (rules.empty() ? "" : ", ") + rule.name();
  subject.facts = {
      {"analysed", models},
      {"experts, choices", concat(trace.num_experts, ", ", trace.top_k, " per token")},
      {"tokens", concat(trace.num_tokens(), " in ", trace.num_sequences(), " rows of at most ",
                        trace.sequence_length, ", ", trace.documents.size(), " documents")},
      {"sources and their tokens", sources},
      {"drop rules", rules}};
  return subject;
}

// What does not depend on the subjects; on one rank.
void check_options(const AnalyzeOptions& options) {
  std::vector<DropRule> rules;
  for (const std::string& text : options.rules) {
    rules.push_back(parse_drop_rule(text, 1));
    if (std::count(rules.begin(), rules.end(), rules.back()) > 1)
      throw UserError("--drop " + text + ": is named twice; leave one out");
  }
  if (!options.other_tokenizer.empty()) try {
      const Tokenizer other(options.other_tokenizer);
    } catch (const UserError& error) {
      throw UserError(std::string("--compare-tokenizer: ") + error.what());
    }
  open_output(options.out_folder);
}

void check_facts(const AnalyzeOptions& options, const SubjectFacts& facts) {
  std::int64_t num_ids = static_cast<std::int64_t>(facts.pieces.size());
  for (const RoutingTrace* text : facts.texts)
    for (const std::int32_t id : text->token_ids) num_ids = std::max<std::int64_t>(num_ids, id + 1);
  for (const std::int32_t id : token_ids(options.tokens, facts.pieces))
    if (id >= num_ids) throw UserError(concat("--tokens #", id, ": allowed: #0 to #", num_ids - 1));
  const std::vector<Axis> defaults = default_axes();
  for (std::size_t axis = 0; axis < defaults.size(); ++axis)
    if (options.analysis.axes[axis].selector != defaults[axis].selector)
      check_axis(options.analysis.axes[axis], facts.texts);
  const std::int64_t layer = options.analysis.layer;
  if (layer < 0 || std::count(facts.layers.begin(), facts.layers.end(), layer) > 0) return;
  std::string layers;
  for (const std::int64_t known : facts.layers) layers += concat(layers.empty() ? "" : ", ", known);
  throw UserError(concat("--layer ", layer, ": allowed: ", layers));
}

std::vector<Figure> figures_of(const Subjects& subjects, const AnalysisOptions& options,
                               AnalysisSubject& subject) {
  try {
    Analysis analysis(subjects.models, subjects.pieces, options);
    std::vector<Figure> figures = analysis.figures();
    subject.left_out = analysis.left_out();
    return figures;
  } catch (const std::bad_alloc&) {
    const RoutingTrace& trace = subjects.models.front().trace;
    throw UserError(concat("analyze: the tables of ", trace.num_tokens(), " tokens, ",
                           trace.num_experts, " experts and ", trace.longest_sequence(),
                           " positions of a row do not fit into memory; read fewer --positions or "
                           "checkpoints, raise --min-count, or cut the log"));
  }
}

int run_analyze(const AnalyzeOptions& options, CommandContext& context) {
  on_root(context.mpi.world(), [&] { check_options(options); });
  const Subjects subjects = read_subjects(
      options.subjects, [&](const SubjectFacts& facts) { check_facts(options, facts); }, context);
  on_root(context.mpi.world(), [&] {
    AnalysisOptions analysis = options.analysis;
    analysis.rules = drop_rules(options, subjects);
    analysis.tokens = token_ids(options.tokens, subjects.pieces);
    AnalysisSubject subject = describe(subjects, analysis, context.command_line);
    std::vector<Figure> figures = figures_of(subjects, analysis, subject);
    if (!options.other_tokenizer.empty())
      figures.push_back(tokenizer_figure(options.subjects.data_folder, options.other_tokenizer));
    write_analysis(options.out_folder, figures, subject);
    for (const Figure& figure : figures)
      if (!figure.finding.empty())
        std::printf("%s\n  %s\n", figure.title.c_str(), figure.finding.c_str());
    for (const auto& [title, reason] : subject.left_out)
      std::printf("left out: %s: %s\n", title.c_str(), reason.c_str());
    std::printf("%zu figures in %s/report.html\n", figures.size(), options.out_folder.c_str());
  });
  return kExitSuccess;
}

void add_axis_option(CLI::App& command, AnalyzeOptions& options, std::size_t axis,
                     const std::string& name) {
  command
      .add_option(name, options.analysis.axes[axis].selector,
                  "texts of " + options.analysis.axes[axis].paper +
                      ": SOURCE or SOURCE:TAG with * and commas, ! excludes; with a tag, one group "
                      "for each tag")
      ->capture_default_str();
}

}  // namespace

void register_analyze(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<AnalyzeOptions>();
  CLI::App* command =
      app.add_subcommand("analyze", "how the routers of checkpoints or logs choose, as figures");
  add_subject_options(*command, options->subjects);
  AnalysisOptions& analysis = options->analysis;
  command->add_option(
      "--drop", options->rules,
      "RULE:FACTOR[:GROUP], such as tokens:1.25:4096, or dropless: capacity whose drops "
      "are shown; default: those of the recipe in training and evaluation, and port:2");
  command
      ->add_option("--layer", analysis.layer,
                   "layer of the network that pictures show; default: the third MoE layer")
      ->check(whole_number(0));
  command
      ->add_option("--min-count", analysis.min_count,
                   "least number of an id where ids are compared")
      ->check(whole_number(1))
      ->capture_default_str();
  command->add_option("--top", analysis.num_top_tokens, "tokens listed for each expert")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command
      ->add_option("--tokens", options->tokens,
                   "pieces of Figures 10 and 11, or #ID; default: the most frequent")
      ->delimiter(',');
  command->add_option("--permutations", analysis.permutations, "of the test of each axis")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_option("--resamples", analysis.resamples, "of the documents, for intervals")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_option("--seed", analysis.seed, "of both")->capture_default_str();
  const char* const axes[] = {"--domains", "--programming-languages", "--natural-languages",
                              "--tasks"};
  for (std::size_t axis = 0; axis < std::size(axes); ++axis)
    add_axis_option(*command, *options, axis, axes[axis]);
  command
      ->add_option("--compare-tokenizer", options->other_tokenizer,
                   "another SentencePiece model, for Table 10 over --data")
      ->needs("--data");
  command->add_option("--out", options->out_folder, "folder of the report and its data")
      ->required();
  command->callback([&context, options] {
    context.run = [&context, options] { return run_analyze(*options, context); };
  });
}

}  // namespace openmoe
