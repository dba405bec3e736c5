// Analysis: from routing traces to figures. Pure arithmetic on traces, on one rank.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "apps/figure.h"
#include "core/routing/drops.h"
#include "core/routing/statistics.h"
#include "core/routing/trace.h"

namespace openmoe {

// The routing of one checkpoint or log.
struct AnalysedModel {
  std::string run;         // checkpoints of one run are shown over steps
  std::int64_t step = -1;  // -1: unknown
  RoutingTrace trace;
  std::vector<std::pair<std::string, double>> losses;  // by source; empty for logs
  std::string label() const;
};

// Groups of documents that a figure sets beside each other: those that `selector` names, by their
// source, or by their tag where it has a ':'. A selector is SOURCE or SOURCE:TAG, * standing for
// any characters; several are separated by commas, the last that fits decides, and ! before one
// excludes.
struct Axis {
  std::string id;     // "domains"
  std::string title;  // "domain"
  std::string paper;  // "Figure 5"
  std::string selector;
};
// The four of Figures 5 to 8: domains, programming languages, natural languages, tasks.
std::vector<Axis> default_axes();
std::string option_of(const Axis& axis);  // "--domains"
// Throws UserError, with what is there, when a selector that is not empty fits no document.
void check_axis(const Axis& axis, const std::vector<const RoutingTrace*>& texts);

struct AnalysisOptions {
  std::vector<Axis> axes = default_axes();
  std::vector<DropRule> rules;       // the first is that of "kept"
  std::int64_t layer = -1;           // drawn first; -1: the third MoE layer, or the last
  std::int64_t min_count = 128;      // of an id, where ids are compared
  std::int64_t num_top_tokens = 10;  // Tables 9 and 15
  std::vector<std::int32_t> tokens;  // of Figures 10 and 11; empty: the most frequent
  std::int64_t permutations = 999;
  std::int64_t resamples = 1000;
  std::uint64_t seed = 1;
};

class Analysis {
 public:
  // `models`, those of a run by rising step; the last one of the first run is the main one, of
  // which figures of a single state are made. pieces: text of token ids, may be short. References
  // must outlive this.
  Analysis(const std::vector<AnalysedModel>& models, const std::vector<std::string>& pieces,
           const AnalysisOptions& options);

  std::vector<Figure> figures();  // those that have something to show
  // Title and reason of the others; after figures().
  const std::vector<std::pair<std::string, std::string>>& left_out() const { return left_out_; }

 private:
  Figure loads();
  Figure shares_by_axis(const Axis& axis);
  Figure divergences();
  Figure by_position();
  Figure by_token();
  Figure position_deviation();
  Figure token_deviation();
  Figure top_tokens();
  Figure over_checkpoints();
  Figure stability();
  Figure drops();
  Figure drops_before_after();
  Figure information();
  Figure prediction();
  Figure losses();

  // By keys (N), for each Counted in its order, of the main model's layer `l`.
  std::array<CountTable, 4> count_ways(std::size_t l, const std::vector<std::int32_t>& keys,
                                       std::int64_t rows) const;

  struct Grouping {
    std::vector<std::string> names;
    std::vector<std::int32_t> of_document;  // -1: in none
  };
  Grouping group(const RoutingTrace& trace, const std::string& selector) const;
  std::vector<std::int32_t> keys_of(const RoutingTrace& trace, const Grouping& grouping) const;
  std::size_t shown_layer(const RoutingTrace& trace) const;
  std::string piece(std::int32_t id) const;
  const RoutingTrace& trace() const { return main_->trace; }
  const LayerTrace& layer() const { return trace().layers[shown_layer(trace())]; }
  std::string layer_name(const LayerTrace& layer) const;
  std::string rare_ids() const;  // why a figure of ids is empty
  std::vector<std::int32_t> chosen_tokens() const;
  std::vector<const AnalysedModel*> last_of_runs() const;

  const std::vector<AnalysedModel>& models_;
  const std::vector<std::string>& pieces_;
  const AnalysisOptions& options_;
  const AnalysedModel* main_;
  std::vector<std::pair<std::string, std::string>> left_out_;
  std::vector<std::vector<std::uint8_t>> kept_;  // of the main model's layers, by the first rule
};

}  // namespace openmoe
