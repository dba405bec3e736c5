// A scored task: a JSON file that says how an example of a data file becomes a prompt and what is
// right. The format is described in recipes/tasks/README.md.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace openmoe {

enum class TaskKind { choose, generate };

struct Task {
  std::string name;
  std::string description;
  TaskKind kind = TaskKind::choose;
  std::string data;                   // JSON Lines file below --task-data; {{subtask}} is replaced
  std::vector<std::string> subtasks;  // empty: one task
  std::string prompt;                 // template
  std::string separator = " ";        // between prompt and answer
  // choose
  std::vector<std::string> choices;  // templates, or
  std::string choices_from;          // path of a list
  std::vector<std::string>
      prompts;  // one template per choice, where the prompts differ and `continuation` follows all
  std::string continuation;
  std::string
      answer;  // path of the right choice: its index, its label, or true and false for 1 and 0
  std::int64_t answer_offset = 0;   // subtracted from an index
  std::vector<std::string> labels;  // of the choices, or
  std::string labels_from;          // path of a list
  std::string truth_from;  // path of a list of 0 and 1, one per choice, instead of `answer`
  // generate
  std::vector<std::string> targets;  // templates of right answers, or
  std::string targets_from;          // path of a text or list
  std::vector<std::string> stop;     // texts that end an answer
  std::string cut;                   // characters at the first of which an answer is cut
  std::int64_t max_tokens = 64;
  std::vector<std::string> metrics;  // of exact_match, f1, bleu, pass
  std::vector<std::string>
      checker;  // command for `pass`: gets {"example", "completion"} as JSON, 0 is right
  // examples with their answers put before the prompt
  std::int64_t shots = 0;
  std::string shot_data;  // file they come from; "": the examples that follow in the same file
  std::string shot_separator = "\n\n";
};

// Throws UserError that names the file and key on anything unknown, missing or of the wrong type.
Task load_task(const std::string& path);

// The examples of a JSON Lines file. Throws UserError with file and line.
std::vector<nlohmann::json> load_examples(const std::string& path);

}  // namespace openmoe
