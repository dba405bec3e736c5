// RunLog: the run folder's records, written by rank 0: recipe.json, metrics.jsonl (one object per
// step), validation.jsonl (one object per validation and source), and the numbers of both as
// TensorBoard event files in tensorboard/.
#pragma once

#include <cstdint>
#include <fstream>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "data/event_file.h"

namespace openmoe {

class RunLog {
 public:
  // Opens the records of `folder`, which must exist. Rows of `first_step` and later, which a
  // stopped run wrote after its last checkpoint, are removed, so that each step stands in the file
  // once; readers of the event files are told to drop them. Throws UserError when the folder cannot
  // be written.
  RunLog(const std::string& folder, std::int64_t first_step);

  // Throws RuntimeFault when the disk is full.
  void write_recipe(const std::string& recipe_json);
  void write_step(const nlohmann::ordered_json& row);
  void write_validation(const nlohmann::ordered_json& row);
  // Removes the rows of `first_step` and later again: the run has gone back to there.
  void go_back(std::int64_t first_step);

 private:
  std::string folder_;
  std::ofstream metrics_;
  std::ofstream validation_;
  EventFile events_;
};

}  // namespace openmoe
