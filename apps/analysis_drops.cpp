// Drops against position: Figures 12 and 14.
#include <algorithm>

#include "apps/analysis.h"
#include "apps/analysis_text.h"
#include "core/base/check.h"

namespace openmoe {
namespace {

constexpr std::int64_t kBuckets = 32;

struct Buckets {
  std::int64_t count = 0;
  std::int64_t length = 0;  // positions of each

  explicit Buckets(std::int64_t T) : count(std::min(kBuckets, T)), length((T + count - 1) / count) {
    count = (T + length - 1) / length;
  }
  std::int64_t begin(std::int64_t b) const { return b * length; }
};

double share(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

std::vector<Cell> drop_cells(const DropCounts& counts) {
  return {counts.tokens, share(counts.lost_first, counts.tokens),
          share(counts.lost_second, counts.tokens), share(counts.lost_any, counts.tokens),
          share(counts.lost_all, counts.tokens)};
}

// Losses of first choices by bucket of position, of the tokens whose key is not -1.
std::vector<DropCounts> by_bucket(const RoutingTrace& trace, const std::vector<std::uint8_t>& kept,
                                  const std::vector<std::int32_t>& sets) {
  const Buckets buckets(trace.sequence_length);
  std::vector<std::int32_t> keys = trace.positions();
  for (std::size_t n = 0; n < keys.size(); ++n)
    keys[n] = sets[n] < 0 ? -1 : static_cast<std::int32_t>(keys[n] / buckets.length);
  return count_drops(kept, trace.top_k, keys, buckets.count);
}

Series curve(const std::string& name, const RoutingTrace& trace,
             const std::vector<DropCounts>& counts, std::int64_t DropCounts::*lost) {
  const Buckets buckets(trace.sequence_length);
  Series series{name, {}, {}};
  for (std::int64_t b = 0; b < buckets.count; ++b) {
    const DropCounts& bucket = counts[static_cast<std::size_t>(b)];
    if (bucket.tokens == 0) continue;
    series.x.push_back(static_cast<double>(buckets.begin(b)));
    series.y.push_back(share(bucket.*lost, bucket.tokens));
  }
  return series;
}

DropCounts sum_of(const std::vector<DropCounts>& counts, std::size_t begin, std::size_t end) {
  DropCounts sum;
  for (std::size_t b = begin; b < end; ++b) {
    sum.tokens += counts[b].tokens;
    sum.lost_first += counts[b].lost_first;
    sum.lost_all += counts[b].lost_all;
  }
  return sum;
}

void add_rows(Table& table, const std::string& head, const DropRule& rule, const LayerTrace& layer,
              const std::string& set, const RoutingTrace& trace,
              const std::vector<DropCounts>& counts) {
  const Buckets buckets(trace.sequence_length);
  for (std::int64_t b = 0; b < buckets.count; ++b) {
    std::vector<Cell> row = {
        head, rule.name(),      layer.layer,
        set,  buckets.begin(b), std::min(buckets.begin(b + 1), trace.sequence_length)};
    for (Cell& cell : drop_cells(counts[static_cast<std::size_t>(b)])) row.push_back(cell);
    table.rows.push_back(std::move(row));
  }
}

const std::vector<std::string> kDropColumns = {
    "model",  "rule",       "layer",       "set",      "position_begin", "position_end",
    "tokens", "lost_first", "lost_second", "lost_any", "lost_all"};

}  // namespace

Figure Analysis::drops() {
  Figure figure;
  figure.id = "drops_by_position";
  figure.paper = "Figures 12a, 13 and 14";
  figure.title = "Drop share against position";
  figure.definition =
      "Share of tokens, by their position in the row, whose first choice finds its expert full, "
      "and "
      "of those that no expert takes. The recorded choices are served again as the router serves "
      "them, first choices of a group before second ones and earlier positions before later, under "
      "each rule RULE:FACTOR:GROUP (tokens: round(factor G / E) slots; assignments and port: K "
      "times "
      "as many). A set of texts is one line; each source has groups of its own.";
  figure.table.columns = kDropColumns;
  figure.absence = "no text is in any of the sets (--domains and the others)";
  std::vector<std::pair<std::string, std::vector<std::int32_t>>> sets;
  for (const Axis& axis : options_.axes) {
    const Grouping grouping = group(trace(), axis.selector);
    if (grouping.names.empty()) continue;
    sets.emplace_back(axis.id, keys_of(trace(), grouping));
    if (axis.id != "domains") continue;
    for (std::size_t g = 0; g < grouping.names.size(); ++g) {
      std::vector<std::int32_t> keys = sets.front().second;
      for (std::int32_t& key : keys) key = key == static_cast<std::int32_t>(g) ? 0 : -1;
      sets.emplace_back(grouping.names[g], std::move(keys));
    }
  }
  for (const DropRule& rule : options_.rules) {
    LinePlot first, all;
    for (const LayerTrace& layer : trace().layers) {
      const std::vector<std::uint8_t> kept = simulate_drops(trace(), layer, rule);
      for (const auto& [name, keys] : sets) {
        const std::vector<DropCounts> counts = by_bucket(trace(), kept, keys);
        add_rows(figure.table, main_->label(), rule, layer, name, trace(), counts);
        const bool is_axis = std::any_of(options_.axes.begin(), options_.axes.end(),
                                         [&, &set = name](const Axis& a) { return a.id == set; });
        if (&layer != &this->layer() || !is_axis) continue;
        first.series.push_back(curve(name, trace(), counts, &DropCounts::lost_first));
        all.series.push_back(curve(name, trace(), counts, &DropCounts::lost_all));
        const std::size_t half = counts.size() / 2;
        const DropCounts begin = sum_of(counts, 0, half), end = sum_of(counts, half, counts.size());
        if (&rule == &options_.rules.front())
          figure.finding += concat(name, ": ", percent(share(begin.lost_first, begin.tokens)),
                                   " of first choices lost in the first half of a row, ",
                                   percent(share(end.lost_first, end.tokens)), " in the second. ");
      }
    }
    const std::string where = concat(rule.name(), ", ", layer_name(this->layer()));
    figure.plots.push_back({"first choice lost, " + where, "position", "share of tokens", first});
    figure.plots.push_back({"no expert left, " + where, "position", "share of tokens", all});
  }
  return figure;
}

Figure Analysis::drops_before_after() {
  Figure figure;
  figure.id = "drops_of_runs";
  figure.paper = "Figure 12b";
  figure.title = "Drop share against position, run beside run";
  figure.definition =
      "As before, for the last checkpoint of each run, such as before and after supervised "
      "fine-tuning: over all texts, and over those of each set.";
  figure.table.columns = kDropColumns;
  const std::vector<const AnalysedModel*> runs = last_of_runs();
  figure.absence = "there is one run, " + main_->run + "; NAME=PATH names others";
  if (runs.size() < 2) return figure;
  for (const DropRule& rule : options_.rules) {
    std::vector<std::pair<std::string, LinePlot>> plots;  // by set
    for (const AnalysedModel* model : runs) {
      std::vector<std::pair<std::string, std::vector<std::int32_t>>> sets = {
          {"all", std::vector<std::int32_t>(model->trace.token_ids.size(), 0)}};
      for (const Axis& axis : options_.axes) {
        const Grouping grouping = group(model->trace, axis.selector);
        if (!grouping.names.empty()) sets.emplace_back(axis.id, keys_of(model->trace, grouping));
      }
      // A log may lack a set, such as languages.
      std::vector<std::size_t> plot_of;
      for (const auto& set : sets) {
        const auto at = std::find_if(plots.begin(), plots.end(),
                                     [&](const auto& plot) { return plot.first == set.first; });
        plot_of.push_back(static_cast<std::size_t>(at - plots.begin()));
        if (at == plots.end()) plots.push_back({set.first, {}});
      }
      for (const LayerTrace& layer : model->trace.layers) {
        const std::vector<std::uint8_t> kept = simulate_drops(model->trace, layer, rule);
        for (std::size_t s = 0; s < sets.size(); ++s) {
          const auto counts = by_bucket(model->trace, kept, sets[s].second);
          add_rows(figure.table, model->label(), rule, layer, sets[s].first, model->trace, counts);
          if (&layer == &model->trace.layers[shown_layer(model->trace)])
            plots[plot_of[s]].second.series.push_back(
                curve(model->label(), model->trace, counts, &DropCounts::lost_first));
        }
      }
    }
    // Every set under the first rule, all texts under the others.
    for (std::size_t s = 0; s < (&rule == &options_.rules.front() ? plots.size() : 1); ++s)
      figure.plots.push_back({concat("first choice lost, ", plots[s].first, ", ", rule.name(), ", ",
                                     layer_name(layer())),
                              "position", "share of tokens", plots[s].second});
  }
  return figure;
}

}  // namespace openmoe
