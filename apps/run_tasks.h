// Scored tasks on a checkpoint.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/decode_model.h"
#include "apps/task.h"

namespace openmoe {

struct TaskOptions {
  std::vector<std::string> files;  // task files
  std::string data_folder = ".";
  std::int64_t limit = 0;     // examples of each data file; 0: all
  bool run_checkers = false;  // pass@1 runs what the model wrote
  std::string samples_file;   // "": none; else JSON Lines with every example's outcome
};

// One object per task and subtask: task, examples, and its metrics: for choices accuracy (highest
// log-likelihood), accuracy_per_character and accuracy_per_token (length-normalised), and with
// several right choices probability_of_true; for generation exact_match, f1, bleu, pass_at_1.
// Collective; throws UserError on every rank.
nlohmann::ordered_json run_tasks(const TaskOptions& options, DecodeModel& model,
                                 Communicator& world);

}  // namespace openmoe
