// StreamPlan: the inside of BatchStream. It cuts a recipe's phases into stretches of steps with one
// row schedule each, and knows for every row its source, its place in that source and its random
// numbers. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "core/batch.h"
#include "core/config/mixture.h"
#include "core/config/recipe.h"
#include "data/batch_stream.h"
#include "data/chat_stream.h"
#include "data/data_folder.h"
#include "data/objective.h"
#include "data/row_schedule.h"
#include "data/token_budget.h"

namespace openmoe {

class StreamPlan {
 public:
  StreamPlan(const Recipe& recipe, const std::string& folder, const std::vector<Mixture>& mixtures);

  const Recipe& recipe() const { return recipe_; }  // ends in tokens resolved
  DataFolder& data() { return *data_; }
  std::string fingerprint() const;

  // Fills row `row` of the zeroed batch with row `global_row` of `step`. `origin` may be null.
  void build_row(std::int64_t step, std::int64_t global_row, Batch& batch, std::int64_t row,
                 RowOrigin* origin);
  std::vector<std::string> validation_sources(std::int64_t step) const;
  void build_validation_row(std::int64_t step, const std::string& source, std::int64_t number,
                            Batch& batch, std::int64_t row);
  std::vector<SourceProgress> progress(std::int64_t step);
  std::vector<double> asked_shares(std::int64_t step) const;

 private:
  // A source as one stretch reads it: one of `stream` and `chat`, where the stretch begins in it,
  // and the plan of the period last asked for.
  struct Cursor {
    std::size_t source = 0;
    DocumentStream* stream = nullptr;
    ChatStream* chat = nullptr;
    std::int64_t begin = 0;  // token offset, or row number for chat
    std::uint64_t key = 0;   // random stream of plans and masks
    std::int64_t planned_period = -1;
    std::vector<RowPlan> plan;
  };
  struct Stretch {
    std::int64_t begin_step = 0;
    std::int64_t end_step = 0;
    const Objective* objective = nullptr;  // null: chat
    std::unique_ptr<RowSchedule> schedule;
    std::vector<Cursor> cursors;
    bool is_placed = false;            // the cursors' begins are known
    std::vector<double> first_shares;  // of the rows, by cursor, at the start
    std::vector<double> last_shares;   // and at the end; they differ in a blend
  };

  void add_phase(std::size_t phase);
  RowMeans chat_means(std::size_t phase);
  Stretch make_stretch(std::size_t phase, const std::vector<std::string>& sources);
  std::vector<double> row_shares(const Stretch& stretch, const Mixture& mixture,
                                 const std::vector<std::string>& sources) const;
  DocumentStream& stream(std::size_t source, Split split, const DocumentStream::Options& options);
  ChatStream& chat(std::size_t source, Split split);
  std::size_t stretch_at(std::int64_t step) const;
  void place(std::size_t index);
  const RowPlan& plan(const Objective& objective, Cursor& cursor, std::int64_t example,
                      std::uint64_t seed) const;
  std::int64_t end_of(const Stretch& stretch, Cursor& cursor, std::int64_t num_examples) const;
  std::int64_t examples_before(const Stretch& stretch, const Cursor& cursor,
                               std::int64_t step) const;
  void build_example(const Objective* objective, Cursor& cursor, std::int64_t example,
                     std::uint64_t seed, Batch& batch, std::int64_t row);
  std::uint64_t seed() const { return static_cast<std::uint64_t>(recipe_.run.seed); }

  Recipe recipe_;
  std::vector<Mixture> mixtures_;
  std::unique_ptr<DataFolder> data_;
  std::deque<Objective> objectives_;  // a deque keeps their addresses
  std::vector<const Objective*> phase_objectives_;
  std::vector<Stretch> stretches_;
  // By source, split and reading options.
  std::map<std::tuple<std::size_t, Split, bool, bool>, std::unique_ptr<DocumentStream>> streams_;
  std::map<std::tuple<std::size_t, Split>, std::unique_ptr<ChatStream>> chats_;
  std::vector<std::int32_t> ids_;  // scratch
  std::vector<DocumentSpan> spans_;
};

}  // namespace openmoe
