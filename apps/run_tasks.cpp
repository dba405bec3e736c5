#include "apps/run_tasks.h"

#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "apps/agree.h"
#include "apps/prompt.h"
#include "apps/task_text.h"
#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// The quoted word of a shell command.
std::string quoted(const std::string& word) {
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// One example of a task, with its templates filled.
struct Example {  // NOLINT(bugprone-exception-escape): moving JSON does not throw
  Json fields;
  std::string place;
  std::vector<std::string> prompts;  // one, or one per choice
  std::vector<std::string> choices;  // empty: to be generated
  std::vector<bool> is_true;         // of each choice
  std::vector<std::string> targets;
};

class TaskRun {
 public:
  TaskRun(const Task& task, const TaskOptions& options, DecodeModel& model, Communicator& world)
      : task_(task), options_(options), model_(model), world_(world) {}

  OrderedJson run(const std::string& subtask, std::ostream* samples) {
    std::vector<Example> examples;
    on_every_rank(world_, [&] { examples = load(subtask); });
    std::vector<Example*> to_choose, to_generate;
    for (Example& example : examples)
      (example.choices.empty() ? to_generate : to_choose).push_back(&example);
    OrderedJson result = {{"task", subtask.empty() ? task_.name : task_.name + "/" + subtask},
                          {"examples", examples.size()}};
    if (!to_choose.empty()) choose(to_choose, result, samples);
    if (!to_generate.empty()) generate(to_generate, result, samples);
    return result;
  }

 private:
  std::string data_path(std::string file, const std::string& subtask) const {
    for (std::size_t at; (at = file.find("{{subtask}}")) != std::string::npos;)
      file.replace(at, 11, subtask);
    return fs::path(options_.data_folder) / file;
  }

  std::vector<Example> load(const std::string& subtask) const {
    const std::string path = data_path(task_.data, subtask);
    const std::vector<Json> fields = load_examples(path);
    std::vector<Json> shots;
    if (!task_.shot_data.empty()) shots = load_examples(data_path(task_.shot_data, subtask));
    const std::size_t count =
        options_.limit > 0
            ? std::min<std::size_t>(static_cast<std::size_t>(options_.limit), fields.size())
            : fields.size();
    std::vector<Example> examples;
    for (std::size_t i = 0; i < count; ++i) {
      Example example = fill(fields[i], concat(path, ", example ", i + 1));
      std::string before;
      for (std::int64_t s = 0; s < task_.shots; ++s) {
        const auto shot = static_cast<std::size_t>(s);
        const std::size_t at = shots.empty() ? (i + 1 + shot) % fields.size() : shot;
        const std::vector<Json>& from = shots.empty() ? fields : shots;
        if (at >= from.size() || (shots.empty() && at == i)) break;
        before += solved(fill(from[at], concat(path, ", shot ", at + 1))) + task_.shot_separator;
      }
      for (std::string& prompt : example.prompts) prompt.insert(0, before);
      examples.push_back(std::move(example));
    }
    return examples;
  }

  // An example with its right answer.
  std::string solved(const Example& example) const {
    if (example.choices.empty())
      return example.prompts[0] + task_.separator +
             (example.targets.empty() ? "" : example.targets[0]);
    const auto right = static_cast<std::size_t>(
        std::find(example.is_true.begin(), example.is_true.end(), true) - example.is_true.begin());
    return example.prompts[example.prompts.size() == 1 ? 0 : right] + task_.separator +
           example.choices[right];
  }

  std::vector<std::string> texts_at(const Json& fields, const std::string& path,
                                    const std::string& place) const {
    const Json& value = value_at(fields, path, place);
    std::vector<std::string> texts;
    if (value.is_array())
      for (const Json& item : value)
        texts.push_back(item.is_string() ? item.get<std::string>() : item.dump());
    else
      texts.push_back(value.is_string() ? value.get<std::string>() : value.dump());
    return texts;
  }

  Example fill(const Json& fields, const std::string& place) const {
    Example example;
    example.fields = fields;
    example.place = place;
    const auto filled = [&](const std::string& text) { return fill_template(text, fields, place); };
    for (const std::string& text : task_.prompts) example.prompts.push_back(filled(text));
    if (example.prompts.empty()) example.prompts.push_back(filled(task_.prompt));
    for (const std::string& text : task_.targets) example.targets.push_back(filled(text));
    if (!task_.targets_from.empty()) example.targets = texts_at(fields, task_.targets_from, place);
    if (task_.kind == TaskKind::generate) return example;
    for (const std::string& text : task_.choices) example.choices.push_back(filled(text));
    if (!task_.choices_from.empty()) example.choices = texts_at(fields, task_.choices_from, place);
    if (!task_.prompts.empty())
      example.choices.assign(task_.prompts.size(), filled(task_.continuation));
    if (!example.choices.empty()) example.is_true = truth(fields, place, example.choices.size());
    return example;
  }

  std::vector<bool> truth(const Json& fields, const std::string& place, std::size_t count) const {
    std::vector<bool> is_true(count, false);
    if (!task_.truth_from.empty()) {
      const Json& list = value_at(fields, task_.truth_from, place);
      if (!list.is_array() || list.size() != count)
        throw UserError(
            concat(place, ": ", task_.truth_from, " is not a list of ", count, " numbers"));
      for (std::size_t i = 0; i < count; ++i)
        is_true[i] = list[i].is_number() && list[i].get<double>() > 0.0;
    } else {
      is_true[right_choice(fields, place, count)] = true;
    }
    if (std::find(is_true.begin(), is_true.end(), true) == is_true.end())
      throw UserError(place + ": none of its choices is right");
    return is_true;
  }

  std::size_t right_choice(const Json& fields, const std::string& place, std::size_t count) const {
    const Json& value = value_at(fields, task_.answer, place);
    std::vector<std::string> labels = task_.labels;
    if (!task_.labels_from.empty()) labels = texts_at(fields, task_.labels_from, place);
    std::int64_t index = -1;
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    if (!labels.empty()) {
      const auto found = std::find(labels.begin(), labels.end(), text);
      index = found == labels.end() ? -1 : found - labels.begin();
    } else if (value.is_boolean()) {
      index = value.get<bool>() ? 1 : 0;
    } else {
      char* end = nullptr;
      const std::int64_t number = std::strtoll(text.c_str(), &end, 10);
      if (end != text.c_str()) index = number - task_.answer_offset;
    }
    if (index < 0 || index >= static_cast<std::int64_t>(count))
      throw UserError(concat(
          place, ": its answer ", value.dump(), " is none of its ", count,
          " choices; the task's \"answer\", \"labels\" and \"answer_offset\" say how it is read"));
    return static_cast<std::size_t>(index);
  }

  // Tokens of prompt and continuation together, so that they are those of the whole text; `first`
  // is where the continuation begins. Of a text that is too long the beginning goes.
  infer::ScoreRequest score_request(std::string prompt, std::string continuation) const {
    while (!prompt.empty() && prompt.back() == ' ') {  // blanks belong to the next piece
      continuation.insert(continuation.begin(), ' ');
      prompt.pop_back();
    }
    infer::ScoreRequest request;
    const auto before = encode_prompt(model_.tokenizer(), prompt);
    request.tokens = encode_prompt(model_.tokenizer(), prompt + continuation);
    request.first = static_cast<std::int64_t>(std::min(before.size(), request.tokens.size()));
    const std::int64_t excess =
        static_cast<std::int64_t>(request.tokens.size()) - model_.decoder().options().max_length;
    if (excess > 0) {
      request.tokens.erase(request.tokens.begin(), request.tokens.begin() + excess);
      request.first = std::max<std::int64_t>(0, request.first - excess);
    }
    return request;
  }

  void choose(const std::vector<Example*>& examples, OrderedJson& result, std::ostream* samples) {
    std::vector<infer::ScoreRequest> requests;
    for (const Example* example : examples)
      for (std::size_t c = 0; c < example->choices.size(); ++c)
        requests.push_back(score_request(example->prompts[example->prompts.size() == 1 ? 0 : c],
                                         task_.separator + example->choices[c]));
    const auto scores = model_.generator().score(requests);
    double right = 0.0, per_character = 0.0, per_token = 0.0, of_true = 0.0;
    std::size_t next = 0;
    for (const Example* example : examples) {
      std::vector<double> sums, by_character, by_token;
      double all = 0.0, truth = 0.0;
      for (std::size_t c = 0; c < example->choices.size(); ++c, ++next) {
        double sum = 0.0;
        for (const infer::TokenScore& score : scores[next])
          sum += static_cast<double>(score.log_prob);
        sums.push_back(sum);
        by_character.push_back(sum / std::max(1.0, num_characters(example->choices[c])));
        by_token.push_back(sum / std::max(1.0, static_cast<double>(scores[next].size())));
        all += std::exp(sum);
        truth += example->is_true[c] ? std::exp(sum) : 0.0;
      }
      const auto is_right = [&](const std::vector<double>& values) {
        return example->is_true[static_cast<std::size_t>(
            std::max_element(values.begin(), values.end()) - values.begin())];
      };
      right += is_right(sums);
      per_character += is_right(by_character);
      per_token += is_right(by_token);
      of_true += all > 0.0 ? truth / all : 0.0;
      if (samples != nullptr)
        *samples << OrderedJson{{"task", result["task"]},
                                {"prompt", example->prompts[0]},
                                {"choices", example->choices},
                                {"log_likelihoods", sums},
                                {"is_right", is_right(sums)}}
                        .dump(-1, ' ', false, OrderedJson::error_handler_t::replace)
                 << "\n";
    }
    const auto count = static_cast<double>(examples.size());
    result["accuracy"] = right / count;
    result["accuracy_per_character"] = per_character / count;
    result["accuracy_per_token"] = per_token / count;
    if (!task_.truth_from.empty()) result["probability_of_true"] = of_true / count;
  }

  static double num_characters(const std::string& text) {
    return static_cast<double>(std::count_if(text.begin(), text.end(), [](char c) {
      return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    }));
  }

  std::vector<std::string> answers(const std::vector<Example*>& examples) {
    std::vector<infer::GenerationRequest> requests;
    std::vector<TextOfTokens> texts;
    for (const Example* example : examples) {
      infer::GenerationRequest request;
      request.prompt = encode_prompt(model_.tokenizer(), example->prompts[0]);
      // Room for the answer: of a long prompt the beginning goes.
      const std::int64_t room = model_.decoder().options().max_length - 1;
      const std::int64_t most = std::max<std::int64_t>(1, room - task_.max_tokens);
      if (static_cast<std::int64_t>(request.prompt.size()) > most)
        request.prompt.erase(request.prompt.begin(), request.prompt.end() - most);
      request.max_new_tokens = task_.max_tokens;
      texts.emplace_back(model_.tokenizer(), request.prompt, task_.stop);
      requests.push_back(std::move(request));
    }
    const auto results = model_.generator().generate(
        requests, [&](std::size_t index, const std::vector<std::int32_t>& tokens) {
          return texts[index].is_stopped(tokens);
        });
    std::vector<std::string> answers;
    for (std::size_t i = 0; i < results.size(); ++i) {
      std::string text = texts[i].text(results[i].tokens);
      if (!task_.cut.empty()) {
        if (text.starts_with(' ')) text.erase(0, 1);
        text = text.substr(0, text.find_first_of(task_.cut));
      }
      answers.push_back(text);
    }
    return answers;
  }

  void generate(const std::vector<Example*>& examples, OrderedJson& result, std::ostream* samples) {
    const std::vector<std::string> texts = answers(examples);
    const auto count = static_cast<double>(examples.size());
    const auto metrics =
        task_.metrics.empty() ? std::vector<std::string>{"exact_match"} : task_.metrics;
    const auto best_of = [&](std::size_t i, const auto& metric) {
      double best = 0.0;
      for (const std::string& target : examples[i]->targets)
        best = std::max(best, static_cast<double>(metric(texts[i], target)));
      return best;
    };
    for (const std::string& metric : metrics) {
      double sum = 0.0;
      if (metric == "bleu") {
        std::vector<std::string> targets;
        targets.reserve(examples.size());
        for (const Example* example : examples)
          targets.push_back(example->targets.empty() ? "" : example->targets[0]);
        result["bleu"] = corpus_bleu(texts, targets);
        continue;
      }
      for (std::size_t i = 0; i < examples.size(); ++i)
        sum += metric == "exact_match" ? best_of(i, exact_match)
               : metric == "f1"        ? best_of(i, token_f1)
                                       : static_cast<double>(passes(*examples[i], texts[i]));
      result[metric == "pass" ? "pass_at_1" : metric] = sum / count;
    }
    if (samples == nullptr) return;
    for (std::size_t i = 0; i < examples.size(); ++i)
      *samples << OrderedJson{{"task", result["task"]},
                              {"prompt", examples[i]->prompts[0]},
                              {"answer", texts[i]},
                              {"targets", examples[i]->targets}}
                      .dump(-1, ' ', false, OrderedJson::error_handler_t::replace)
               << "\n";
  }

  // Whether the task's checker accepts a completion; run by rank 0 alone.
  bool passes(const Example& example, const std::string& completion) {
    std::string verdict;
    on_root(world_, [&] {
      if (!options_.run_checkers)
        throw UserError("task " + task_.name +
                        ": its checker runs what the model wrote as a program; allow that with "
                        "--run-checkers, in a place where it can do no harm");
      std::string command;
      for (const std::string& word : task_.checker) command += quoted(word) + " ";
      FILE* const pipe = popen((command + "> /dev/null 2>&1").c_str(), "w");
      if (pipe == nullptr) throw RuntimeFault("popen failed for the checker of task " + task_.name);
      const std::string input = Json{{"example", example.fields}, {"completion", completion}}.dump(
                                    -1, ' ', false, Json::error_handler_t::replace) +
                                "\n";
      std::fwrite(input.data(), 1, input.size(), pipe);
      const int status = pclose(pipe);
      const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
      if (code == 127)
        throw UserError("task " + task_.name + ": its checker " + command +
                        "is not there; commands are looked for "
                        "from the present folder");
      verdict = code == 0 ? "yes" : "no";
    });
    world_.broadcast(verdict, 0);
    return verdict == "yes";
  }

  const Task& task_;
  const TaskOptions& options_;
  DecodeModel& model_;
  Communicator& world_;
};

}  // namespace

OrderedJson run_tasks(const TaskOptions& options, DecodeModel& model, Communicator& world) {
  std::vector<Task> tasks;
  on_every_rank(world, [&] {
    for (const std::string& file : options.files) tasks.push_back(load_task(file));
  });
  std::ofstream samples;
  on_root(world, [&] {
    if (options.samples_file.empty()) return;
    samples.open(options.samples_file, std::ios::trunc);
    if (!samples) throw UserError("--samples " + options.samples_file + ": cannot be written");
  });
  auto results = OrderedJson::array();
  for (const Task& task : tasks) {
    TaskRun run(task, options, model, world);
    const auto subtasks = task.subtasks.empty() ? std::vector<std::string>{""} : task.subtasks;
    for (const std::string& subtask : subtasks)
      results.push_back(run.run(subtask, samples.is_open() ? &samples : nullptr));
  }
  return results;
}

}  // namespace openmoe
