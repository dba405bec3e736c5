#include "apps/task.h"

#include <algorithm>
#include <fstream>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

using Json = nlohmann::json;

class TaskReader {
 public:
  TaskReader(const Json& json, std::string path) : json_(json), path_(std::move(path)) {}

  void read(const char* key, std::string& value) {
    if (const Json* found = find(key)) {
      if (!found->is_string()) fail(key, "a string");
      value = *found;
    }
  }
  void read(const char* key, std::int64_t& value) {
    if (const Json* found = find(key)) {
      if (!found->is_number_integer()) fail(key, "an integer");
      value = *found;
    }
  }
  void read(const char* key, std::vector<std::string>& value) {
    if (const Json* found = find(key)) {
      if (!found->is_array()) fail(key, "a list of strings");
      for (const Json& item : *found) {
        if (!item.is_string()) fail(key, "a list of strings");
        value.push_back(item);
      }
    }
  }
  void check_no_others() const {
    for (const auto& item : json_.items())
      if (std::find(known_.begin(), known_.end(), item.key()) == known_.end()) {
        std::string all;
        for (const std::string& key : known_) all += (all.empty() ? "" : ", ") + key;
        throw UserError(path_ + ": unknown key \"" + item.key() + "\"; allowed: " + all);
      }
  }
  void need(bool condition, const std::string& what) const {
    if (!condition) throw UserError(path_ + ": " + what);
  }

 private:
  const Json* find(const char* key) {
    known_.emplace_back(key);
    const auto found = json_.find(key);
    return found == json_.end() ? nullptr : &*found;
  }
  [[noreturn]] void fail(const char* key, const std::string& allowed) const {
    throw UserError(path_ + ": " + key + ": found " + json_.at(key).dump() +
                    ", allowed: " + allowed);
  }

  const Json& json_;
  std::string path_;
  std::vector<std::string> known_;
};

void check(const TaskReader& reader, const Task& task) {
  reader.need(!task.name.empty() && !task.data.empty(), "needs \"name\" and \"data\"");
  const bool has_choices =
      !task.choices.empty() || !task.choices_from.empty() || !task.prompts.empty();
  reader.need(!task.prompt.empty() || !task.prompts.empty(), "needs a \"prompt\"");
  if (task.kind == TaskKind::choose) {
    reader.need(has_choices, "needs \"choices\", \"choices_from\" or \"prompts\"");
    reader.need(task.answer.empty() != task.truth_from.empty(),
                "needs one of \"answer\" and \"truth_from\"");
    return;
  }
  reader.need(!task.metrics.empty(), "needs \"metrics\"");
  for (const std::string& metric : task.metrics) {
    reader.need(metric == "exact_match" || metric == "f1" || metric == "bleu" || metric == "pass",
                "metrics: found \"" + metric + "\", allowed: exact_match, f1, bleu, pass");
    if (metric == "pass")
      reader.need(!task.checker.empty(), "metric pass needs a \"checker\"");
    else
      reader.need(!task.targets.empty() || !task.targets_from.empty(),
                  "metric " + metric + " needs \"targets\" or \"targets_from\"");
  }
}

}  // namespace

Task load_task(const std::string& path) {
  std::ifstream file(path);
  if (!file)
    throw UserError(path + ": cannot be read; --tasks takes files such as recipes/tasks/piqa.json");
  const Json json = Json::parse(file, nullptr, false);
  if (!json.is_object()) throw UserError(path + ": is not a JSON object");
  Task task;
  TaskReader reader(json, path);
  std::string kind = "choose";
  reader.read("name", task.name);
  reader.read("description", task.description);
  reader.read("kind", kind);
  reader.need(kind == "choose" || kind == "generate",
              "kind: found \"" + kind + "\", allowed: choose, generate");
  task.kind = kind == "choose" ? TaskKind::choose : TaskKind::generate;
  reader.read("data", task.data);
  reader.read("subtasks", task.subtasks);
  reader.read("prompt", task.prompt);
  reader.read("separator", task.separator);
  reader.read("choices", task.choices);
  reader.read("choices_from", task.choices_from);
  reader.read("prompts", task.prompts);
  reader.read("continuation", task.continuation);
  reader.read("answer", task.answer);
  reader.read("answer_offset", task.answer_offset);
  reader.read("labels", task.labels);
  reader.read("labels_from", task.labels_from);
  reader.read("truth_from", task.truth_from);
  reader.read("targets", task.targets);
  reader.read("targets_from", task.targets_from);
  reader.read("stop", task.stop);
  reader.read("cut", task.cut);
  reader.read("max_tokens", task.max_tokens);
  reader.read("metrics", task.metrics);
  reader.read("checker", task.checker);
  reader.read("shots", task.shots);
  reader.read("shot_data", task.shot_data);
  reader.read("shot_separator", task.shot_separator);
  reader.check_no_others();
  check(reader, task);
  return task;
}

std::vector<Json> load_examples(const std::string& path) {
  std::ifstream file(path);
  if (!file)
    throw UserError(
        path +
        ": cannot be read; put the task's data there as JSON Lines, or name its folder with "
        "--task-data");
  std::vector<Json> examples;
  std::int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    examples.push_back(Json::parse(line, nullptr, false));
    if (!examples.back().is_object())
      throw UserError(concat(path, ", line ", number, ": is not a JSON object"));
  }
  if (examples.empty()) throw UserError(path + ": holds no examples");
  return examples;
}

}  // namespace openmoe
