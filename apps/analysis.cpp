// Set-up of the analysis, its groups of documents, and shares of experts over them (Figures 5 to
// 8). The other figures: analysis_tokens.cpp, analysis_drops.cpp, analysis_trends.cpp.
#include "apps/analysis.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

#include "apps/analysis_text.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/routing/resampling.h"

namespace openmoe {
namespace {

bool matches(const char* pattern, const char* text) {
  if (*pattern == '\0') return *text == '\0';
  if (*pattern == '*')
    return matches(pattern + 1, text) || (*text != '\0' && matches(pattern, text + 1));
  return *pattern == *text && matches(pattern + 1, text + 1);
}

// Whether one of the comma-separated selectors names the source and its tag.
bool selects(const std::string& selectors, const std::string& source, const std::string& tag) {
  bool found = false;
  for (std::size_t begin = 0; begin <= selectors.size();) {
    const std::size_t end = std::min(selectors.find(',', begin), selectors.size());
    std::string selector = selectors.substr(begin, end - begin);
    begin = end + 1;
    const bool excludes = selector.starts_with("!");
    if (excludes) selector.erase(0, 1);
    const std::size_t colon = selector.find(':');
    const std::string wanted = selector.substr(0, colon);
    const bool fits =
        matches(wanted.c_str(), source.c_str()) &&
        (colon == std::string::npos || matches(selector.substr(colon + 1).c_str(), tag.c_str()));
    if (fits) found = !excludes;
  }
  return found;
}

}  // namespace

std::string AnalysedModel::label() const {
  if (step < 0) return run;
  return run.empty() ? concat("step ", step) : concat(run, " @ ", step);
}

std::string option_of(const Axis& axis) {
  std::string option = "--" + axis.id;
  std::replace(option.begin(), option.end(), '_', '-');
  return option;
}

void check_axis(const Axis& axis, const std::vector<const RoutingTrace*>& texts) {
  if (axis.selector.empty()) return;
  std::set<std::string> known;
  for (const RoutingTrace* text : texts)
    for (const DocumentOrigin& origin : text->documents) {
      const std::string& source = text->sources[static_cast<std::size_t>(origin.source)];
      if (selects(axis.selector, source, origin.tag)) return;
      known.insert(origin.tag.empty() ? source : source + ":" + origin.tag);
    }
  constexpr std::size_t kListed = 40;
  std::string list;
  std::size_t listed = 0;
  for (const std::string& name : known) {
    if (++listed > kListed) break;
    list += (listed > 1 ? ", " : "") + name;
  }
  if (known.size() > kListed) list += concat(" and ", known.size() - kListed, " more");
  throw UserError(concat(option_of(axis), " ", axis.selector,
                         ": fits none of the texts; sources and their tags here: ", list));
}

std::vector<Axis> default_axes() {
  return {
      {"domains", "domain", "Figure 5", "*,!parallel-*,!the_stack,!conversations*"},
      {"programming_languages", "programming language", "Figure 6", "the_stack:*"},
      {"natural_languages", "natural language", "Figure 7", "parallel-*"},
      {"tasks", "task or conversation", "Figure 8", "conversations*:*"},
  };
}

Analysis::Analysis(const std::vector<AnalysedModel>& models, const std::vector<std::string>& pieces,
                   const AnalysisOptions& options)
    : models_(models), pieces_(pieces), options_(options), main_(&models.front()) {
  OPENMOE_CHECK(!options.rules.empty(), "no drop rule");
  for (const AnalysedModel& model : models)
    if (model.run == models.front().run) main_ = &model;
  for (const LayerTrace& layer : trace().layers)
    kept_.push_back(simulate_drops(trace(), layer, options.rules.front()));
}

std::vector<Figure> Analysis::figures() {
  std::vector<Figure> figures;
  figures.push_back(loads());
  for (const Axis& axis : options_.axes) figures.push_back(shares_by_axis(axis));
  figures.push_back(divergences());
  figures.push_back(by_position());
  figures.push_back(by_token());
  figures.push_back(top_tokens());
  figures.push_back(position_deviation());
  figures.push_back(token_deviation());
  figures.push_back(information());
  figures.push_back(prediction());
  figures.push_back(over_checkpoints());
  figures.push_back(stability());
  figures.push_back(drops());
  figures.push_back(drops_before_after());
  figures.push_back(losses());
  for (const Figure& figure : figures) {
    if (!figure.table.rows.empty()) continue;
    std::string absence = figure.absence;
    if (!figure.finding.empty()) absence += "; " + figure.finding;
    left_out_.emplace_back(figure.title + (figure.paper.empty() ? "" : " (" + figure.paper + ")"),
                           absence);
  }
  std::erase_if(figures, [](const Figure& figure) { return figure.table.rows.empty(); });
  return figures;
}

std::string Analysis::rare_ids() const {
  return concat("no token id is seen ", options_.min_count,
                " times; --min-count says how often it must");
}

std::array<CountTable, 4> Analysis::count_ways(std::size_t l, const std::vector<std::int32_t>& keys,
                                               std::int64_t rows) const {
  std::array<CountTable, 4> tables;
  for (std::size_t way = 0; way < tables.size(); ++way)
    tables[way] = count_experts(trace(), trace().layers[l], keys, rows, kCounted[way], kept_[l]);
  return tables;
}

// A selector with a tag groups by tag, documents without one by their source's name.
Analysis::Grouping Analysis::group(const RoutingTrace& trace, const std::string& selector) const {
  const bool by_tag = selector.find(':') != std::string::npos;
  const auto name = [&](const DocumentOrigin& origin) {
    const std::string& source = trace.sources[static_cast<std::size_t>(origin.source)];
    return by_tag && !origin.tag.empty() ? origin.tag : source;
  };
  std::map<std::string, std::int32_t> index;
  Grouping grouping;
  for (const DocumentOrigin& origin : trace.documents) {
    const std::string& source = trace.sources[static_cast<std::size_t>(origin.source)];
    if (selects(selector, source, origin.tag)) index[name(origin)] = 0;
  }
  for (auto& [key, place] : index) {
    place = static_cast<std::int32_t>(grouping.names.size());
    grouping.names.push_back(key);
  }
  for (const DocumentOrigin& origin : trace.documents) {
    const std::string& source = trace.sources[static_cast<std::size_t>(origin.source)];
    grouping.of_document.push_back(selects(selector, source, origin.tag) ? index.at(name(origin))
                                                                         : -1);
  }
  return grouping;
}

std::vector<std::int32_t> Analysis::keys_of(const RoutingTrace& trace,
                                            const Grouping& grouping) const {
  std::vector<std::int32_t> keys;
  keys.reserve(trace.document.size());
  for (const std::int32_t document : trace.document)
    keys.push_back(grouping.of_document[static_cast<std::size_t>(document)]);
  return keys;
}

std::size_t Analysis::shown_layer(const RoutingTrace& trace) const {
  if (options_.layer >= 0) {
    const auto found =
        std::find_if(trace.layers.begin(), trace.layers.end(),
                     [&](const LayerTrace& layer) { return layer.layer == options_.layer; });
    OPENMOE_CHECK(found != trace.layers.end(), "no layer ", options_.layer);
    return static_cast<std::size_t>(found - trace.layers.begin());
  }
  return std::min<std::size_t>(2, trace.layers.size() - 1);
}

std::string Analysis::piece(std::int32_t id) const {
  const auto at = static_cast<std::size_t>(id);
  return at < pieces_.size() ? pieces_[at] : concat("#", id);
}

std::string Analysis::layer_name(const LayerTrace& layer) const {
  return concat("layer ", layer.layer);
}

std::vector<const AnalysedModel*> Analysis::last_of_runs() const {
  std::vector<const AnalysedModel*> last;
  for (const AnalysedModel& model : models_) {
    const auto same = std::find_if(last.begin(), last.end(),
                                   [&](const auto* other) { return other->run == model.run; });
    if (same == last.end())
      last.push_back(&model);
    else
      *same = &model;
  }
  return last;
}

Figure Analysis::loads() {
  Figure figure;
  figure.id = "expert_load";
  figure.title = "Share of each expert";
  figure.definition =
      "Share of all choices of a layer that go to an expert: first choices, all choices, "
      "and those of either that a capacity of " +
      options_.rules.front().name() + " keeps. 1/E everywhere is perfect balance.";
  figure.table.columns = {"layer", "expert", "first", "all", "first_kept", "all_kept"};
  const std::vector<std::int32_t> one(trace().token_ids.size(), 0);
  for (std::size_t l = 0; l < trace().layers.size(); ++l) {
    const LayerTrace& layer = trace().layers[l];
    Heatmap map;
    map.columns = expert_names(trace().num_experts);
    std::vector<std::vector<double>> shares;
    for (const Counted counted : kCounted) {
      shares.push_back(count_experts(trace(), layer, one, 1, counted, kept_[l]).shares(0));
      map.rows.push_back(counted_text(counted));
      map.values.push_back(shares.back());
    }
    for (std::size_t e = 0; e < shares[0].size(); ++e)
      figure.table.rows.push_back({layer.layer, static_cast<std::int64_t>(e), shares[0][e],
                                   shares[1][e], shares[2][e], shares[3][e]});
    figure.plots.push_back({"share of each expert, " + layer_name(layer), "expert", "", map});
  }
  return figure;
}

Figure Analysis::shares_by_axis(const Axis& axis) {
  Figure figure;
  figure.id = axis.id;
  figure.paper = axis.paper;
  figure.title = "Expert share by " + axis.title;
  figure.definition =
      "For each " + axis.title +
      ": the share of its tokens' choices that go to each expert, over first choices and over "
      "all, before drops and after those of " +
      options_.rules.front().name() +
      ". The picture shows all choices before drops; rows that look alike are groups that the "
      "router does not tell apart.";
  figure.table.columns = {"layer", axis.id, "expert",     "tokens",
                          "first", "all",   "first_kept", "all_kept"};
  figure.absence = concat("no text fits ", axis.selector, " (", option_of(axis), ")");
  const Grouping grouping = group(trace(), axis.selector);
  const std::vector<std::int32_t> keys = keys_of(trace(), grouping);
  const auto rows = static_cast<std::int64_t>(grouping.names.size());
  for (std::size_t l = 0; l < trace().layers.size() && rows > 0; ++l) {
    const LayerTrace& layer = trace().layers[l];
    const auto tables = count_ways(l, keys, rows);
    Heatmap map;
    map.columns = expert_names(trace().num_experts);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::string& name = grouping.names[static_cast<std::size_t>(r)];
      map.rows.push_back(name);
      map.values.push_back(tables[1].shares(r));
      const auto first = tables[0].shares(r), all = tables[1].shares(r),
                 first_kept = tables[2].shares(r), all_kept = tables[3].shares(r);
      for (std::size_t e = 0; e < first.size(); ++e)
        figure.table.rows.push_back({layer.layer, name, static_cast<std::int64_t>(e),
                                     tables[0].total(r), first[e], all[e], first_kept[e],
                                     all_kept[e]});
    }
    if (l == shown_layer(trace()))
      figure.plots.push_back({"share of each expert by " + axis.title + ", " + layer_name(layer),
                              "expert", axis.title, map});
  }
  return figure;
}

// Is the routing of the groups different at all? One number for each axis and layer.
Figure Analysis::divergences() {
  Figure figure;
  figure.id = "specialisation";
  figure.paper = "Figures 5 to 8, as one number each";
  figure.title = "Do experts specialise by domain, language or task?";
  figure.definition = concat(
      "Jensen-Shannon divergence between the groups' expert shares, in bits: 0 when all groups are "
      "routed alike, log2(groups) when no two share an expert. Beside it what ",
      options_.permutations,
      " random re-groupings of the same documents give: their mean, what 5 % of them exceed, and "
      "p, "
      "the share of them that is at least as large. A small p says that a difference is there; how "
      "large it is says the divergence.");
  figure.table.columns = {"model",     "axis",      "layer",      "counted",
                          "groups",    "documents", "divergence", "of_largest",
                          "null_mean", "null_p95",  "p_value"};
  figure.absence = "no set of texts (--domains and the others) has two groups";
  for (const AnalysedModel* model : last_of_runs()) {
    BarPlot bars;
    bars.series = {"observed", "random, mean", "random, 95th percentile"};
    for (const Axis& axis : options_.axes) {
      const Grouping grouping = group(model->trace, axis.selector);
      const auto groups = static_cast<std::int64_t>(grouping.names.size());
      if (groups < 2) continue;
      for (const LayerTrace& layer : model->trace.layers)
        for (const Counted counted : {Counted::first, Counted::all}) {
          const auto documents = static_cast<std::int64_t>(model->trace.documents.size());
          const GroupDifference test = permutation_test(
              count_experts(model->trace, layer, model->trace.document, documents, counted),
              grouping.of_document, groups, options_.permutations, options_.seed);
          const double largest = std::log2(static_cast<double>(groups));
          figure.table.rows.push_back({model->label(), axis.id, layer.layer, name_of(counted),
                                       groups, test.documents, test.divergence,
                                       test.divergence / largest, test.null_mean, test.null_p95,
                                       test.p_value});
          if (counted != Counted::all || &layer != &model->trace.layers[shown_layer(model->trace)])
            continue;
          bars.groups.push_back(axis.title);
          bars.values.push_back({test.divergence, test.null_mean, test.null_p95});
          if (model == main_)
            figure.finding +=
                concat(axis.title, ": ", rounded(test.divergence, 4), " bits of at most ",
                       rounded(largest, 2), ", p ", rounded(test.p_value, 3), ". ");
        }
    }
    if (!bars.groups.empty())
      figure.plots.push_back({"divergence of groups, " + model->label() + ", " +
                                  layer_name(model->trace.layers[shown_layer(model->trace)]),
                              "", "bits", bars});
  }
  return figure;
}

}  // namespace openmoe
