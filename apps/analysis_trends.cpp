// What determines the expert, and how it changes over checkpoints: Figure 11, information,
// prediction, stability, losses.
#include <algorithm>
#include <cmath>
#include <map>

#include "apps/analysis.h"
#include "apps/analysis_text.h"
#include "core/base/check.h"
#include "core/routing/resampling.h"

namespace openmoe {
namespace {

// What might say which expert a token goes to.
struct Explanation {
  const char* id;
  const char* text;
  std::vector<std::int32_t> values;  // of each token; -1: unknown
};

std::vector<Explanation> explanations(const RoutingTrace& trace) {
  std::vector<std::int32_t> sources;
  for (const std::int32_t document : trace.document)
    sources.push_back(trace.documents[static_cast<std::size_t>(document)].source);
  return {{"token_id", "token id", trace.token_ids},
          {"previous_token", "previous token", trace.previous_tokens()},
          {"position", "position", trace.positions()},
          {"source", "source", sources}};
}

TokenTable token_table(const RoutingTrace& trace, const LayerTrace& layer) {
  DistinctKeys ids = distinct_keys(trace.token_ids);
  const auto rows = static_cast<std::int64_t>(ids.values.size());
  TokenTable result;
  result.table = count_experts(trace, layer, ids.keys, rows, Counted::first);
  result.ids = std::move(ids.values);
  return result;
}

// A point of a run in the plots over steps.
void add_point(LinePlot& plot, const AnalysedModel& model, std::size_t index, double y) {
  const std::string name = model.run.empty() ? "run" : model.run;
  if (std::isnan(y)) return;
  auto found = std::find_if(plot.series.begin(), plot.series.end(),
                            [&](const Series& series) { return series.name == name; });
  if (found == plot.series.end()) {
    plot.series.push_back({name, {}, {}});
    found = plot.series.end() - 1;
  }
  found->x.push_back(model.step >= 0 ? static_cast<double>(model.step)
                                     : static_cast<double>(index));
  found->y.push_back(y);
}

std::string prediction_text(const std::string& key, const Prediction& p,
                            const RoutingTrace& trace) {
  if (std::isnan(p.accuracy))
    return concat(key,
                  ": not computable, since documents with it must be in both halves (the text has ",
                  trace.documents.size(), " in all). ");
  if (std::isnan(p.low)) return concat(key, ": ", percent(p.accuracy), " (one document only). ");
  return concat(key, ": ", percent(p.accuracy), " (", percent(p.low), " to ", percent(p.high),
                "). ");
}

// Runs of a single checkpoint have no course.
void drop_single_points(LinePlot& plot) {
  std::erase_if(plot.series, [](const Series& series) { return series.x.size() < 2; });
}

}  // namespace

Figure Analysis::information() {
  Figure figure;
  figure.id = "information";
  figure.title = "What the expert depends on: mutual information";
  figure.definition =
      "Information in bits between the expert and the token id, the previous token, the position "
      "and "
      "the source, from observed frequencies and less the bias of finite counts (Miller and "
      "Madow); "
      "the share is of the entropy of the expert, 100 % when it is determined. First choices in "
      "the "
      "pictures.";
  figure.table.columns = {"model",          "layer",          "key",  "counted", "bits",
                          "corrected_bits", "expert_entropy", "share"};
  LinePlot over_steps;
  over_steps.log_x = true;
  std::map<const AnalysedModel*, BarPlot> bars;
  const auto runs = last_of_runs();
  for (std::size_t m = 0; m < models_.size(); ++m) {
    const AnalysedModel& model = models_[m];
    const bool is_last = std::find(runs.begin(), runs.end(), &model) != runs.end();
    for (const LayerTrace& layer : model.trace.layers) {
      std::vector<double> bar;
      for (const Explanation& why : explanations(model.trace)) {
        const DistinctKeys keys = distinct_keys(why.values);
        const auto rows = static_cast<std::int64_t>(keys.values.size());
        for (const Counted counted : {Counted::first, Counted::all}) {
          const Information info =
              mutual_information(count_experts(model.trace, layer, keys.keys, rows, counted));
          const double part =
              info.expert_entropy > 0 ? info.corrected_bits / info.expert_entropy : 0.0;
          figure.table.rows.push_back({model.label(), layer.layer, std::string(why.id),
                                       std::string(name_of(counted)), info.bits,
                                       info.corrected_bits, info.expert_entropy, part});
          if (counted != Counted::first) continue;
          bar.push_back(part);
          if (&layer != &model.trace.layers[shown_layer(model.trace)]) continue;
          if (std::string(why.id) == "token_id") add_point(over_steps, model, m, part);
          if (&model == main_)
            figure.finding += concat(why.text, ": ", percent(part), " of the expert's entropy. ");
        }
      }
      if (!is_last) continue;
      bars[&model].groups.push_back(layer_name(layer));
      bars[&model].values.push_back(bar);
    }
  }
  for (const AnalysedModel* model : runs) {
    bars[model].series = {"token id", "previous token", "position", "source"};
    figure.plots.push_back({"share of the expert's entropy, " + model->label(), "",
                            "share of the entropy", bars[model]});
  }
  drop_single_points(over_steps);
  if (!over_steps.series.empty())
    figure.plots.push_back({"share that the token id explains, " + layer_name(layer()), "step",
                            "share of the entropy", over_steps});
  return figure;
}

Figure Analysis::prediction() {
  Figure figure;
  figure.id = "prediction";
  figure.paper = "the claim of Section 4.2 as one number";
  figure.title = "How well the token id alone predicts the expert";
  figure.definition =
      "Share of tokens whose expert is the most frequent one of the same key in the other half of "
      "the documents, those of each source taking turns (for all choices: the share of the K "
      "choices that are among the K most "
      "frequent). The interval is a bootstrap over documents, 95 %, of the last checkpoint of each "
      "run. \"nothing\" always names the most frequent expert. Empty: not computable, or not "
      "computed.";
  figure.table.columns = {"model", "layer", "key", "counted", "accuracy", "low", "high", "tokens"};
  LinePlot over_steps;
  over_steps.log_x = true;
  const auto runs = last_of_runs();
  for (std::size_t m = 0; m < models_.size(); ++m) {
    const AnalysedModel& model = models_[m];
    const bool is_last = std::find(runs.begin(), runs.end(), &model) != runs.end();
    std::vector<Explanation> keys = explanations(model.trace);
    keys.push_back(
        {"nothing", "nothing", std::vector<std::int32_t>(model.trace.token_ids.size(), 0)});
    BarPlot bars;
    for (const Explanation& why : keys) bars.series.push_back(why.text);
    for (const LayerTrace& layer : model.trace.layers) {
      std::vector<double> value, low, high;
      for (const Explanation& why : keys) {
        const DistinctKeys distinct = distinct_keys(why.values);
        const auto rows = static_cast<std::int64_t>(distinct.values.size());
        for (const bool first : {true, false}) {
          const Prediction p = predict_experts(model.trace, layer, distinct.keys, rows, first,
                                               is_last ? options_.resamples : 0, options_.seed);
          figure.table.rows.push_back({model.label(), layer.layer, std::string(why.id),
                                       std::string(first ? "first" : "all"), p.accuracy, p.low,
                                       p.high, p.tokens});
          if (!first) continue;
          value.push_back(p.accuracy);
          low.push_back(p.low);
          high.push_back(p.high);
          if (&layer != &model.trace.layers[shown_layer(model.trace)]) continue;
          if (std::string(why.id) == "token_id") add_point(over_steps, model, m, p.accuracy);
          if (&model == main_) figure.finding += prediction_text(why.text, p, model.trace);
        }
      }
      bars.groups.push_back(layer_name(layer));
      bars.values.push_back(value);
      bars.low.push_back(low);
      bars.high.push_back(high);
    }
    if (is_last)
      figure.plots.push_back(
          {"first choices predicted, " + model.label(), "", "share of tokens", bars});
  }
  drop_single_points(over_steps);
  if (!over_steps.series.empty())
    figure.plots.push_back({"first choices that the token id predicts, " + layer_name(layer()),
                            "step", "share of tokens", over_steps});
  return figure;
}

// Figure 11 for its single tokens; the whole vocabulary is in stability().
Figure Analysis::over_checkpoints() {
  Figure figure;
  figure.id = "tokens_over_checkpoints";
  figure.paper = "Figure 11";
  figure.title = "The same tokens over checkpoints";
  figure.definition =
      "For a token id: the share of its first choices that go to each expert, checkpoint by "
      "checkpoint of the first run, and how much of that the last checkpoint has in common "
      "(overlap: "
      "sum over experts of the smaller share). Empty where the id does not occur.";
  figure.absence = "there is one checkpoint or log of " + main_->run +
                   ", a course needs two (--every-checkpoint, or logs of one name)";
  figure.table.columns = {"model",  "layer", "token_id",         "token",
                          "expert", "first", "overlap_with_last"};
  constexpr std::size_t kShown = 4;
  std::vector<const AnalysedModel*> course;
  for (const AnalysedModel& model : models_)
    if (model.run == main_->run) course.push_back(&model);
  if (course.size() < 2) return figure;
  const std::size_t l = shown_layer(trace());
  std::vector<std::int32_t> tokens = chosen_tokens();
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    Heatmap map;
    map.columns = expert_names(trace().num_experts);
    const auto shares = [&](const AnalysedModel& model) {
      std::vector<std::int32_t> keys;
      for (const std::int32_t id : model.trace.token_ids) keys.push_back(id == tokens[i] ? 0 : -1);
      const CountTable table =
          count_experts(model.trace, model.trace.layers[l], keys, 1, Counted::first);
      return table.total(0) > 0 ? table.shares(0)
                                : std::vector<double>(static_cast<std::size_t>(table.experts),
                                                      Prediction::kUnknown);
    };
    const std::vector<double> last = shares(*main_);
    for (const AnalysedModel* model : course) {
      const std::vector<double> now = shares(*model);
      const bool is_known = !std::isnan(now[0]) && !std::isnan(last[0]);
      const double common = is_known ? overlap(now, last) : Prediction::kUnknown;
      for (std::size_t e = 0; e < now.size(); ++e)
        figure.table.rows.push_back({model->label(), layer().layer,
                                     static_cast<std::int64_t>(tokens[i]), piece(tokens[i]),
                                     static_cast<std::int64_t>(e), now[e], common});
      map.rows.push_back(model->step >= 0 ? std::to_string(model->step) : model->label());
      map.values.push_back(now);
    }
    if (i < kShown)
      figure.plots.push_back(
          {concat("first choices of ", piece(tokens[i]), ", ", layer_name(layer())), "expert",
           "step", map});
  }
  return figure;
}

Figure Analysis::stability() {
  Figure figure;
  figure.id = "stability";
  figure.paper = "Figure 11, over the whole vocabulary";
  figure.title = "When token ids find their experts";
  figure.definition = concat(
      "Between a checkpoint and the last of its run, and between it and the one before: overlap of "
      "the first-choice shares of a token id, mean over ids weighed by their number, and the share "
      "of ids whose favourite expert is the same. Ids seen at least ",
      options_.min_count, " times.");
  figure.table.columns = {"model", "layer", "other", "ids", "mean_overlap", "same_favourite"};
  figure.absence = models_.size() == last_of_runs().size()
                       ? "there is one checkpoint or log of each run, a course needs two "
                         "(--every-checkpoint, or "
                         "logs of one name)"
                       : rare_ids();
  LinePlot with_last, favourites;
  with_last.log_x = favourites.log_x = true;
  with_last.from_zero = favourites.from_zero = true;
  std::map<std::string, const AnalysedModel*> before;
  for (std::size_t m = 0; m < models_.size(); ++m) {
    const AnalysedModel& model = models_[m];
    const AnalysedModel* last = nullptr;
    for (const AnalysedModel* run : last_of_runs())
      if (run->run == model.run) last = run;
    for (std::size_t l = 0; l < model.trace.layers.size(); ++l) {
      const TokenTable now = token_table(model.trace, model.trace.layers[l]);
      for (const AnalysedModel* other : {last, before[model.run]}) {
        if (other == nullptr || other == &model) continue;
        const Agreement agreement = compare_tokens(
            now, token_table(other->trace, other->trace.layers[l]), options_.min_count);
        if (agreement.ids == 0) continue;  // none frequent enough
        figure.table.rows.push_back({model.label(), model.trace.layers[l].layer, other->label(),
                                     agreement.ids, agreement.mean_overlap,
                                     agreement.same_favourite});
        if (other != last || l != shown_layer(model.trace)) continue;
        add_point(with_last, model, m, agreement.mean_overlap);
        add_point(favourites, model, m, agreement.same_favourite);
      }
    }
    before[model.run] = &model;
  }
  drop_single_points(with_last);
  drop_single_points(favourites);
  if (with_last.series.empty()) return figure;
  figure.plots.push_back(
      {"overlap with the last checkpoint, " + layer_name(layer()), "step", "overlap", with_last});
  figure.plots.push_back(
      {"ids whose favourite expert is that of the last checkpoint, " + layer_name(layer()), "step",
       "share of ids", favourites});
  return figure;
}

Figure Analysis::losses() {
  Figure figure;
  figure.id = "losses";
  figure.paper = "Figure 1";
  figure.title = "Loss of each source on the same text";
  figure.definition = "Cross-entropy in nats per token of the rows that were analysed.";
  figure.table.columns = {"model", "step", "source", "loss"};
  figure.absence = "logs record no losses";
  for (const AnalysedModel& model : models_)
    for (const auto& [source, loss] : model.losses)
      figure.table.rows.push_back({model.label(), model.step, source, loss});
  BarPlot bars;
  const auto runs = last_of_runs();
  for (const AnalysedModel* model : runs) bars.series.push_back(model->label());
  if (!models_.front().losses.empty())
    for (std::size_t s = 0; s < main_->losses.size(); ++s) {
      bars.groups.push_back(main_->losses[s].first);
      bars.values.emplace_back();
      for (const AnalysedModel* model : runs)
        bars.values.back().push_back(s < model->losses.size() ? model->losses[s].second : 0.0);
    }
  if (!bars.groups.empty())
    figure.plots.push_back({"loss of the last checkpoint of each run", "", "nats per token", bars});
  return figure;
}

}  // namespace openmoe
