// What `openmoe analyze` analyses: checkpoints on a text, or routing logs.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "apps/analysis.h"
#include "apps/command.h"
#include "apps/decode_model.h"
#include "apps/observe_routing.h"

namespace openmoe {

struct SubjectOptions {
  const CLI::App* command = nullptr;               // which options were given
  std::vector<const CLI::Option*> of_checkpoints;  // those that logs do without
  std::vector<std::string> checkpoints;            // [NAME=]PATH of a run or checkpoint folder
  bool every_checkpoint = false;                   // of each run folder
  std::vector<std::string> logs;                   // [NAME=]FILE
  std::string data_folder;
  std::vector<std::string> sources;  // of the data folder; empty: all
  std::string split = "validation";
  std::vector<std::string> inputs;      // [NAME=]FILE of text
  std::vector<std::string> positions;   // N or SOURCE=N
  std::int64_t document_positions = 0;  // most of a document; 0: all
  std::int64_t length = 0;              // T; 0: that of the first checkpoint's recipe
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

// What is known of the subjects before any of their weights are read.
struct SubjectFacts {
  std::vector<std::string> pieces;
  std::vector<std::int64_t> layers;        // numbers of the MoE layers
  std::vector<const RoutingTrace*> texts;  // of the subjects; their layers may be missing
};

// `check` is called with the facts before the long part and may throw UserError, on any rank.
// Collective; throws UserError on every rank.
Subjects read_subjects(const SubjectOptions& options,
                       const std::function<void(const SubjectFacts&)>& check,
                       CommandContext& context);

}  // namespace openmoe
