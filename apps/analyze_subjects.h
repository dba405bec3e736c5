// What `openmoe analyze` analyses: checkpoints on a text, or routing logs.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "apps/analysis.h"
#include "apps/command.h"
#include "apps/decode_model.h"
#include "apps/observe_routing.h"

namespace openmoe {

struct SubjectOptions {
  std::vector<std::string> checkpoints;  // [NAME=]PATH of a run or checkpoint folder
  bool every_checkpoint = false;         // of each run folder
  std::vector<std::string> logs;         // [NAME=]FILE
  std::string data_folder;
  std::vector<std::string> sources;  // of the data folder; empty: all
  std::string split = "validation";
  std::vector<std::string> inputs;     // [NAME=]FILE of text
  std::vector<std::string> positions;  // N or SOURCE=N
  std::int64_t length = 0;             // T; 0: that of the first checkpoint's recipe
  TokenizerOptions tokenizer;
  std::string capacity = "recipe";
  std::string log_folder;  // where the routing of checkpoints is kept as logs
  ObserveOptions observe;
};

struct Subjects {
  std::vector<AnalysedModel> models;  // on rank 0 with their traces
  std::vector<std::string> pieces;
  // Of the first checkpoint's recipe; logs have neither.
  std::vector<DropRule> rules;    // capacity in training and evaluation
  std::int64_t group_tokens = 0;  // 0: unknown
};

void add_subject_options(CLI::App& command, SubjectOptions& options);

// Collective; throws UserError on every rank.
Subjects read_subjects(const SubjectOptions& options, CommandContext& context);

}  // namespace openmoe
