// Routing by position and by token id: Figures 9, 10, 15 and 16, Tables 9 and 15.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "apps/analysis.h"
#include "apps/analysis_text.h"
#include "core/base/check.h"

namespace openmoe {
namespace {

constexpr std::int64_t kShownPositions = 10;  // of Figure 9

std::vector<std::int64_t> row_totals(const CountTable& table) {
  std::vector<std::int64_t> totals;
  for (std::int64_t r = 0; r < table.rows; ++r) totals.push_back(table.total(r));
  return totals;
}

std::vector<double> overall_shares(const CountTable& table) {
  CountTable sum(1, table.experts);
  for (std::int64_t r = 0; r < table.rows; ++r)
    for (std::int64_t e = 0; e < table.experts; ++e)
      sum.row(0)[static_cast<std::size_t>(e)] += table.row(r)[static_cast<std::size_t>(e)];
  return sum.shares(0);
}

// The deviation to expect of `draws` draws from `shares`: their own and that of chance.
double expected_deviation(const std::vector<double>& shares, std::int64_t draws) {
  const double own = standard_deviation(shares);
  double chance = 0.0;
  for (const double p : shares) chance += p * (1.0 - p);
  chance /=
      static_cast<double>(shares.size()) * static_cast<double>(std::max<std::int64_t>(1, draws));
  return std::sqrt(own * own + chance);
}

// A row for each expert: `head`, the expert, the tokens of row r, and its four shares.
void add_share_rows(Table& table, const std::vector<Cell>& head,
                    const std::array<CountTable, 4>& ways, std::int64_t r) {
  std::array<std::vector<double>, 4> shares;
  for (std::size_t way = 0; way < ways.size(); ++way) shares[way] = ways[way].shares(r);
  for (std::size_t e = 0; e < shares[0].size(); ++e) {
    std::vector<Cell> row = head;
    row.push_back(static_cast<std::int64_t>(e));
    row.push_back(ways[0].total(r));
    for (const std::vector<double>& of_way : shares) row.push_back(of_way[e]);
    table.rows.push_back(std::move(row));
  }
}

}  // namespace

Figure Analysis::by_position() {
  Figure figure;
  figure.id = "positions";
  figure.paper = "Figure 9";
  figure.title = "Expert share by position";
  figure.definition =
      "For the position of a token in its row: the share of choices that go to each expert, first "
      "choices and all, before and after drops. The pictures show all choices at positions evenly "
      "apart (a) and next to each other (b).";
  figure.table.columns = {"layer", "position", "expert",     "tokens",
                          "first", "all",      "first_kept", "all_kept"};
  const std::int64_t T = trace().longest_sequence();
  for (std::size_t l = 0; l < trace().layers.size(); ++l) {
    const LayerTrace& layer = trace().layers[l];
    const auto tables = count_ways(l, trace().positions(), T);
    const CountTable& all = tables[1];
    for (std::int64_t t = 0; t < T; ++t) add_share_rows(figure.table, {layer.layer, t}, tables, t);
    if (&layer != &this->layer()) continue;
    const std::int64_t shown = std::min(kShownPositions, T);
    for (const bool even : {true, false}) {
      Heatmap map;
      map.columns = expert_names(trace().num_experts);
      for (std::int64_t i = 0; i < shown; ++i) {
        // Not position 0, where every row has the same token.
        const std::int64_t t = even ? (2 * i + 1) * T / (2 * shown) : (T - shown) / 2 + i;
        map.rows.push_back(std::to_string(t));
        map.values.push_back(all.shares(t));
      }
      figure.plots.push_back(
          {concat(even ? "(a) positions evenly apart, " : "(b) neighbours, ", layer_name(layer)),
           "expert", "position", map});
    }
  }
  return figure;
}

std::vector<std::int32_t> Analysis::chosen_tokens() const {
  if (!options_.tokens.empty()) return options_.tokens;
  const DistinctKeys ids = distinct_keys(trace().token_ids);
  std::vector<std::int64_t> counts(ids.values.size(), 0);
  for (const std::int32_t key : ids.keys) ++counts[static_cast<std::size_t>(key)];
  std::vector<std::size_t> order(counts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return counts[a] > counts[b]; });
  std::vector<std::int32_t> tokens;
  for (const std::size_t i : order)
    if (ids.values[i] > 2 && tokens.size() < 16)
      tokens.push_back(ids.values[i]);  // no pad, eos, unk
  return tokens;
}

Figure Analysis::by_token() {
  Figure figure;
  figure.id = "tokens";
  figure.paper = "Figure 10";
  figure.title = "Expert share by token id";
  figure.definition =
      "For a token id, wherever it stands: the share of its choices that go to each expert. The "
      "picture shows first choices. The table has all ids seen at least " +
      std::to_string(options_.min_count) + " times, and those of --tokens.";
  figure.absence = rare_ids();
  figure.table.columns = {"layer", "token_id", "token",      "expert",  "tokens",
                          "first", "all",      "first_kept", "all_kept"};
  const DistinctKeys ids = distinct_keys(trace().token_ids);
  const auto rows = static_cast<std::int64_t>(ids.values.size());
  const std::vector<std::int32_t> chosen = chosen_tokens();
  for (const std::int32_t id : options_.tokens)
    if (!std::binary_search(ids.values.begin(), ids.values.end(), id))
      figure.finding += concat(piece(id), " (id ", id, ") does not occur in the text. ");
  for (std::size_t l = 0; l < trace().layers.size(); ++l) {
    const LayerTrace& layer = trace().layers[l];
    const auto tables = count_ways(l, ids.keys, rows);
    const CountTable& first = tables[0];
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int32_t id = ids.values[static_cast<std::size_t>(r)];
      const auto& wanted = options_.tokens;
      if (first.total(r) < options_.min_count &&
          std::find(wanted.begin(), wanted.end(), id) == wanted.end())
        continue;
      add_share_rows(figure.table, {layer.layer, static_cast<std::int64_t>(id), piece(id)}, tables,
                     r);
    }
    Heatmap map;
    map.columns = expert_names(trace().num_experts);
    for (const std::int32_t id : chosen) {
      const auto place = std::lower_bound(ids.values.begin(), ids.values.end(), id);
      if (place == ids.values.end() || *place != id) continue;
      map.rows.push_back(piece(id));
      map.values.push_back(first.shares(place - ids.values.begin()));
    }
    if (&layer == &this->layer() && !map.rows.empty())
      figure.plots.push_back(
          {"first choices of single tokens, " + layer_name(layer), "expert", "token", map});
  }
  return figure;
}

Figure Analysis::top_tokens() {
  Figure figure;
  figure.id = "top_tokens";
  figure.paper = "Tables 9 and 15";
  figure.title = "Most frequent tokens of each expert";
  figure.definition = concat(
      "The ", options_.num_top_tokens,
      " token ids that an expert is the first choice of most often, with their number and, in "
      "brackets, the share of all tokens of that id which have this expert as first choice.");
  figure.table.columns = {"layer", "expert", "rank", "token_id", "token", "tokens", "share_of_id"};
  const DistinctKeys ids = distinct_keys(trace().token_ids);
  const auto rows = static_cast<std::int64_t>(ids.values.size());
  for (const LayerTrace& layer : trace().layers) {
    const CountTable table = count_experts(trace(), layer, ids.keys, rows, Counted::first);
    const std::vector<std::int64_t> totals = row_totals(table);
    for (std::int64_t e = 0; e < table.experts; ++e) {
      const auto count = [&](std::int64_t r) { return table.row(r)[static_cast<std::size_t>(e)]; };
      std::vector<std::int64_t> order(static_cast<std::size_t>(rows));
      std::iota(order.begin(), order.end(), std::int64_t{0});
      const auto shown = std::min<std::int64_t>(options_.num_top_tokens, rows);
      std::partial_sort(order.begin(), order.begin() + shown, order.end(),
                        [&](std::int64_t a, std::int64_t b) {
                          return count(a) != count(b) ? count(a) > count(b) : a < b;
                        });
      for (std::int64_t rank = 0; rank < shown; ++rank) {
        const std::int64_t r = order[static_cast<std::size_t>(rank)];
        if (count(r) == 0) break;
        const std::int32_t id = ids.values[static_cast<std::size_t>(r)];
        figure.table.rows.push_back({layer.layer, e, rank + 1, static_cast<std::int64_t>(id),
                                     piece(id), count(r),
                                     static_cast<double>(count(r)) /
                                         static_cast<double>(totals[static_cast<std::size_t>(r)])});
      }
    }
  }
  return figure;
}

Figure Analysis::position_deviation() {
  Figure figure;
  figure.id = "position_deviation";
  figure.paper = "Figure 15";
  figure.title = "How concentrated the experts of a position are";
  figure.definition =
      "Standard deviation over experts of the shares at one position, all choices. Beside it what "
      "a "
      "routing that ignores the position gives: the deviation of the overall shares and that of "
      "chance in as many choices.";
  figure.table.columns = {"layer", "position", "choices", "deviation", "without_position"};
  const std::int64_t T = trace().longest_sequence();
  for (const LayerTrace& layer : trace().layers) {
    const auto table = count_experts(trace(), layer, trace().positions(), T, Counted::all);
    const std::vector<double> overall = overall_shares(table);
    Series observed{"observed", {}, {}}, expected{"if positions did not matter", {}, {}};
    for (std::int64_t t = 0; t < T; ++t) {
      if (table.total(t) == 0) continue;
      const double deviation = standard_deviation(table.shares(t));
      const double none = expected_deviation(overall, table.total(t));
      figure.table.rows.push_back({layer.layer, t, table.total(t), deviation, none});
      observed.x.push_back(static_cast<double>(t));
      observed.y.push_back(deviation);
      expected.x.push_back(static_cast<double>(t));
      expected.y.push_back(none);
    }
    if (&layer == &this->layer())
      figure.plots.push_back({"deviation of the shares, " + layer_name(layer), "position",
                              "standard deviation", LinePlot{{observed, expected}, false, true}});
  }
  return figure;
}

Figure Analysis::token_deviation() {
  Figure figure;
  figure.id = "token_deviation";
  figure.paper = "Figure 16";
  figure.title = "How concentrated the experts of a token id are";
  figure.definition = concat(
      "Standard deviation over experts of the shares of one token id, first choices, of ids seen "
      "at "
      "least ",
      options_.min_count,
      " times, in falling order. Beside it what a routing that ignores the id gives; the most that "
      "is possible, one expert for every token of an id, is sqrt(E - 1) / E.");
  figure.table.columns = {"layer", "token_id", "token", "tokens", "deviation", "without_id"};
  figure.absence = rare_ids();
  const DistinctKeys ids = distinct_keys(trace().token_ids);
  const auto rows = static_cast<std::int64_t>(ids.values.size());
  for (const LayerTrace& layer : trace().layers) {
    const auto table = count_experts(trace(), layer, ids.keys, rows, Counted::first);
    const std::vector<double> overall = overall_shares(table);
    std::vector<std::pair<double, double>> deviations;  // observed, without the id
    for (std::int64_t r = 0; r < rows; ++r) {
      if (table.total(r) < options_.min_count) continue;
      const std::int32_t id = ids.values[static_cast<std::size_t>(r)];
      deviations.emplace_back(standard_deviation(table.shares(r)),
                              expected_deviation(overall, table.total(r)));
      figure.table.rows.push_back({layer.layer, static_cast<std::int64_t>(id), piece(id),
                                   table.total(r), deviations.back().first,
                                   deviations.back().second});
    }
    if (&layer != &this->layer() || deviations.empty()) continue;
    std::sort(deviations.begin(), deviations.end(), std::greater<>());
    Series observed{"observed", {}, {}}, expected{"if ids did not matter", {}, {}};
    for (std::size_t i = 0; i < deviations.size(); ++i) {
      observed.x.push_back(static_cast<double>(i));
      observed.y.push_back(deviations[i].first);
      expected.x.push_back(static_cast<double>(i));
      expected.y.push_back(deviations[i].second);
    }
    figure.plots.push_back({"deviation of the shares, " + layer_name(layer),
                            "token ids, most concentrated first", "standard deviation",
                            LinePlot{{observed, expected}, false, true}});
  }
  return figure;
}

}  // namespace openmoe
