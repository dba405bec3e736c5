// `openmoe generate RUN`: text from a checkpoint: one prompt streamed to the terminal, a file of
// prompts, or a conversation.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "apps/agree.h"
#include "apps/command.h"
#include "apps/decode_model.h"
#include "apps/prompt.h"
#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

using Json = nlohmann::json;

struct GenerateOptions {
  DecodeModelOptions model;
  std::string prompt, prompts_file, out_file, system, ul2;
  bool has_prompt = false, chat = false, ignore_eos = false, recompute = false;
  std::int64_t max_tokens = 128;
  infer::SamplingOptions sampling;
  std::vector<std::string> stop_strings, stop_tokens;
};

// One sequence to generate.
struct Prompt {
  std::vector<std::int32_t> ids;
};

std::string read_input(const std::string& path) {
  std::ostringstream text;
  if (path.empty() || path == "-") {
    text << std::cin.rdbuf();
    return text.str();
  }
  std::ifstream file(path, std::ios::binary);
  text << file.rdbuf();
  if (!file) throw UserError("--prompts " + path + ": cannot be read");
  return text.str();
}

// The same text on every rank.
std::string read_for_all(Communicator& world, const std::string& path) {
  std::string text;
  on_root(world, [&] { text = read_input(path); });
  world.broadcast(text, 0);
  return text;
}

std::vector<std::int32_t> parse_ids(const std::string& list) {
  std::vector<std::int32_t> ids;
  std::istringstream words(list);
  for (std::string word; std::getline(words, word, ',');) {
    std::size_t end = 0;
    long id = -1;
    try {
      id = std::stol(word, &end);
    } catch (const std::exception&) {
    }
    if (id < 0 || end != word.size())
      throw UserError("--stop-tokens " + list +
                      ": allowed: ids with commas, such as 15501,281,926");
    ids.push_back(static_cast<std::int32_t>(id));
  }
  return ids;
}

// Everything one run of the command holds.
class Session {
 public:
  Session(const GenerateOptions& options, CommandContext& context)
      : options_(options),
        world_(context.mpi.world()),
        grid_(make_decode_grid(world_, options.model)),
        model_(model_options(options), *grid_),
        generator_(model_.decoder(), model_.num_ids(), !options.recompute),
        is_root_(context.mpi.world_rank() == 0) {
    for (const std::string& list : options.stop_tokens) stop_sequences_.push_back(parse_ids(list));
    if (options.chat) stop_sequences_.push_back(chat_stop(model_.tokenizer()));
  }

  int run() {
    if (!options_.prompts_file.empty()) return run_file();
    if (options_.chat) return run_chat();
    const std::string text = options_.has_prompt ? options_.prompt : read_for_all(world_, "-");
    stream(encode(text));
    return kExitSuccess;
  }

 private:
  // A single prompt or conversation needs one slot.
  static DecodeModelOptions model_options(const GenerateOptions& options) {
    DecodeModelOptions model = options.model;
    if (options.prompts_file.empty()) model.batch = 1;
    return model;
  }

  std::vector<std::int32_t> encode(const std::string& text) const {
    if (!options_.ul2.empty()) return encode_ul2_prompt(model_.tokenizer(), options_.ul2, text);
    return encode_prompt(model_.tokenizer(), text);
  }

  std::vector<std::int32_t> encode_turns(std::vector<ChatTurn> turns) const {
    if (!options_.system.empty() && (turns.empty() || turns[0].role != "system"))
      turns.insert(turns.begin(), {"system", options_.system});
    return encode_chat(model_.tokenizer(), turns);
  }

  infer::GenerationRequest request(std::vector<std::int32_t> ids, std::uint64_t stream) const {
    infer::GenerationRequest request;
    request.prompt = std::move(ids);
    request.max_new_tokens = options_.max_tokens;
    request.sampling = options_.sampling;
    request.stream = stream;
    request.eos = options_.ignore_eos ? -1 : Tokenizer::kEos;
    request.stop_sequences = stop_sequences_;
    return request;
  }

  // Prints text as it comes. Returns all of it.
  std::string stream(const std::vector<std::int32_t>& ids) {
    const TextOfTokens text(model_.tokenizer(), ids, options_.stop_strings);
    std::string printed;
    const auto print = [&](const std::string& more) {
      if (is_root_ && more.size() > printed.size()) {
        std::fwrite(more.data() + printed.size(), 1, more.size() - printed.size(), stdout);
        std::fflush(stdout);
      }
      printed = more.size() > printed.size() ? more : printed;
    };
    const infer::GenerationRequest one[] = {request(ids, turn_++)};
    const auto result =
        generator_.generate(one, [&](std::size_t, const std::vector<std::int32_t>& tokens) {
          if (text.is_stopped(tokens)) return true;
          // A stop sequence may be about to end the text: what it could hold waits.
          std::vector<std::int32_t> safe = tokens;
          safe.resize(tokens.size() - held(tokens));
          print(text.settled(text.text(safe)));
          return false;
        });
    print(text.text(result[0].tokens));
    if (is_root_) std::printf("\n");
    return printed;
  }

  // Tokens at the end that begin a stop sequence.
  std::size_t held(const std::vector<std::int32_t>& tokens) const {
    std::size_t longest = 0;
    for (const auto& stop : stop_sequences_)
      for (std::size_t n = std::min(stop.size(), tokens.size()); n > longest; --n)
        if (std::equal(stop.begin(), stop.begin() + static_cast<std::ptrdiff_t>(n),
                       tokens.end() - static_cast<std::ptrdiff_t>(n)))
          longest = n;
    return longest;
  }

  int run_chat() {
    std::vector<ChatTurn> turns;
    if (options_.has_prompt) {
      turns.push_back({"user", options_.prompt});
      stream(encode_turns(turns));
      return kExitSuccess;
    }
    for (;;) {
      std::string line;
      if (is_root_) {
        std::fprintf(stderr, "> ");
        if (std::getline(std::cin, line))
          line.insert(0, "+");
        else
          line.clear();
      }
      world_.broadcast(line, 0);
      if (line.empty()) break;
      turns.push_back({"user", line.substr(1)});
      std::string reply = stream(encode_turns(turns));
      if (reply.starts_with(' ')) reply.erase(0, 1);
      turns.push_back({"assistant", reply});
    }
    return kExitSuccess;
  }

  // A line of the file as tokens: {"prompt": ...}, {"messages": [...]} in .jsonl, else the line
  // itself.
  std::vector<std::int32_t> encode_line(const std::string& line, bool is_json,
                                        const std::string& place) const {
    if (!is_json) return options_.chat ? encode_turns({{"user", line}}) : encode(line);
    const Json json = Json::parse(line, nullptr, false);
    if (json.is_object() && json.contains("messages") && json["messages"].is_array()) {
      std::vector<ChatTurn> turns;
      for (const Json& turn : json["messages"])
        if (turn.is_object()) turns.push_back({turn.value("role", ""), turn.value("content", "")});
      return encode_turns(turns);
    }
    if (!json.is_object() || !json.contains("prompt") || !json["prompt"].is_string())
      throw UserError(
          place +
          R"(: allowed: {"prompt": "text"} or {"messages": [{"role": "user", "content": "text"}]})");
    const std::string text = json["prompt"];
    return options_.chat ? encode_turns({{"user", text}}) : encode(text);
  }

  int run_file() {
    const std::string content = read_for_all(world_, options_.prompts_file);
    const bool is_json = options_.prompts_file.ends_with(".jsonl");
    std::vector<infer::GenerationRequest> requests;
    std::istringstream lines(content);
    std::int64_t number = 0;
    for (std::string line; std::getline(lines, line);) {
      ++number;
      if (line.empty()) continue;
      const std::string place = concat("--prompts ", options_.prompts_file, ", line ", number);
      requests.push_back(request(encode_line(line, is_json, place), requests.size()));
    }
    std::vector<TextOfTokens> texts;
    texts.reserve(requests.size());
    for (const auto& one : requests)
      texts.emplace_back(model_.tokenizer(), one.prompt, options_.stop_strings);
    const auto results = generator_.generate(
        requests, [&](std::size_t index, const std::vector<std::int32_t>& tokens) {
          return texts[index].is_stopped(tokens);
        });
    on_root(world_, [&] {
      std::ofstream file;
      if (!options_.out_file.empty()) file.open(options_.out_file, std::ios::trunc);
      std::ostream& out = options_.out_file.empty() ? std::cout : file;
      for (std::size_t i = 0; i < results.size(); ++i)
        out << nlohmann::ordered_json{{"index", i},
                                      {"text", texts[i].text(results[i].tokens)},
                                      {"tokens", results[i].tokens},
                                      {"finish", infer::name_of(results[i].finish)}}
                   .dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace)
            << "\n";
      out.flush();
      if (!out) throw UserError("--out " + options_.out_file + ": cannot be written");
    });
    return kExitSuccess;
  }

  const GenerateOptions& options_;
  Communicator& world_;
  std::unique_ptr<ProcessGrid> grid_;
  DecodeModel model_;
  infer::Generator generator_;
  bool is_root_;
  std::vector<std::vector<std::int32_t>> stop_sequences_;
  std::uint64_t turn_ = 0;
};

void add_sampling_options(CLI::App& command, GenerateOptions& options) {
  infer::SamplingOptions& sampling = options.sampling;
  command.add_option("--tokens", options.max_tokens, "new tokens at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--temperature", sampling.temperature, "0: greedy, always the most likely token")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--top-k", sampling.top_k, "sample from the k most likely tokens; 0: all")
      ->check(CLI::NonNegativeNumber);
  command
      .add_option("--top-p", sampling.top_p,
                  "sample from the most likely tokens that reach this probability together")
      ->check(CLI::Range(1e-6, 1.0));
  command
      .add_option("--repetition-penalty", sampling.repetition_penalty,
                  "above 1 makes tokens of the text so far less likely")
      ->check(CLI::PositiveNumber);
  command.add_option("--seed", sampling.seed, "of sampling")->capture_default_str();
  command.add_option("--stop", options.stop_strings, "text that ends the output; may be repeated")
      ->allow_extra_args(false);
  command
      .add_option("--stop-tokens", options.stop_tokens,
                  "ids, with commas, that end the output when they come in a row; may be repeated")
      ->allow_extra_args(false);
  command.add_flag("--ignore-eos", options.ignore_eos, "go on after the end of a text");
}

}  // namespace

void register_generate(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand("generate", "text from a checkpoint");
  add_decode_options(*command, options->model);
  CLI::Option* prompt = command->add_option(
      "--prompt", options->prompt,
      "text to continue, with <extra_id_0> and so on as sentinels; default: standard input");
  command
      ->add_option(
          "--prompts", options->prompts_file,
          "file of prompts: .jsonl with {\"prompt\"} or {\"messages\"} objects, else one per line")
      ->excludes(prompt);
  command->add_option("--out", options->out_file,
                      "with --prompts: JSON Lines to write; default: standard output");
  CLI::Option* chat = command->add_flag("--chat", options->chat,
                                        "the chat template; without --prompt, a conversation with "
                                        "a line of standard input as each user turn");
  command->add_option("--system", options->system, "with --chat: the system turn")->needs(chat);
  command
      ->add_option("--ul2", options->ul2,
                   "the prompt as the inputs of a UL2 row: mode tag, text, end of inputs")
      ->check(CLI::IsMember({"nlu", "nlg", "s2s"}))
      ->excludes(chat);
  add_sampling_options(*command, *options);
  command->add_flag(
      "--recompute", options->recompute,
      "compute every token from the whole sequence, without the cache: slow, the same text");
  command->callback([&context, options, prompt] {
    options->has_prompt = prompt->count() > 0;
    context.run = [&context, options] { return Session(*options, context).run(); };
  });
}

}  // namespace openmoe
