#include "apps/completions.h"

#include <algorithm>
#include <ctime>
#include <set>

#include "apps/prompt.h"
#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;
using Ids = std::vector<std::int32_t>;

struct CompletionRequest {
  std::vector<Ids> prompts;
  infer::GenerationRequest settings;  // of each, without prompt
  std::vector<std::string> stop;
  bool echo = false;
};

template <typename T>
T number(const Json& body, const char* key, T otherwise, double least, double most) {
  const auto found = body.find(key);
  if (found == body.end() || found->is_null()) return otherwise;
  if (!found->is_number() || found->get<double>() < least || found->get<double>() > most)
    throw UserError(
        concat(key, ": found ", found->dump(), ", allowed: a number from ", least, " to ", most));
  return found->get<T>();
}

bool flag(const Json& body, const char* key) {
  const auto found = body.find(key);
  if (found == body.end() || found->is_null()) return false;
  if (!found->is_boolean())
    throw UserError(concat(key, ": found ", found->dump(), ", allowed: true or false"));
  return found->get<bool>();
}

// Ids as given; the start, which every sequence gets, may stand at their front.
Ids read_ids(const Json& list, const DecodeModel& model) {
  Ids ids;
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 ||
        id.get<std::int64_t>() >= model.recipe().model.vocab_size)
      throw UserError(concat("prompt: found ", id.dump(), ", allowed: ids from 0 to ",
                             model.recipe().model.vocab_size - 1));
    ids.push_back(id.get<std::int32_t>());
  }
  if (!ids.empty() && ids[0] == Tokenizer::kPad) ids.erase(ids.begin());
  return ids;
}

std::vector<Ids> read_prompts(const Json& prompt, const DecodeModel& model) {
  const auto read_one = [&](const Json& one) {
    if (one.is_string()) return encode_prompt(model.tokenizer(), one.get<std::string>());
    if (one.is_array()) return read_ids(one, model);
    throw UserError("prompt: allowed: text, ids, or a list of either");
  };
  if (prompt.is_array() && (prompt.empty() || !prompt[0].is_number())) {
    std::vector<Ids> all;
    for (const Json& one : prompt) all.push_back(read_one(one));
    return all;
  }
  return {read_one(prompt)};
}

CompletionRequest read_request(const Json& body, const DecodeModel& model) {
  static const std::set<std::string> kKnown = {"model",
                                               "prompt",
                                               "max_tokens",
                                               "temperature",
                                               "top_p",
                                               "top_k",
                                               "repetition_penalty",
                                               "seed",
                                               "stop",
                                               "stop_token_ids",
                                               "logprobs",
                                               "echo",
                                               "n",
                                               "stream",
                                               "user",
                                               "stream_options"};
  if (!body.is_object()) throw UserError("the request is not a JSON object");
  for (const auto& item : body.items())
    if (!kKnown.contains(item.key()))
      throw UserError("unknown key \"" + item.key() + "\" of a completion request");
  if (!body.contains("prompt")) throw UserError("prompt: is missing");
  if (number<std::int64_t>(body, "n", 1, 1, 1e6) != 1)
    throw UserError("n: found " + body["n"].dump() +
                    ", allowed: 1; send the prompt several times with other seeds");
  CompletionRequest request;
  request.prompts = read_prompts(body["prompt"], model);
  infer::GenerationRequest& settings = request.settings;
  settings.max_new_tokens = number<std::int64_t>(body, "max_tokens", 16, 0, 1e9);
  settings.sampling.temperature = number<double>(body, "temperature", 1.0, 0, 1e6);
  settings.sampling.top_p = number<double>(body, "top_p", 1.0, 1e-9, 1.0);
  settings.sampling.top_k =
      std::max<std::int64_t>(0, number<std::int64_t>(body, "top_k", 0, -1, 1e9));
  settings.sampling.repetition_penalty = number<double>(body, "repetition_penalty", 1.0, 1e-3, 1e3);
  settings.sampling.seed =
      static_cast<std::uint64_t>(number<std::int64_t>(body, "seed", 1, 0, 9e15));
  settings.num_log_probs = number<std::int64_t>(body, "logprobs", -1, 0, 100);
  request.echo = flag(body, "echo");
  if (const auto stop = body.find("stop"); stop != body.end() && !stop->is_null()) {
    for (const Json& text : stop->is_array() ? *stop : Json::array({*stop})) {
      if (!text.is_string()) throw UserError("stop: allowed: a text or a list of texts");
      if (!text.get<std::string>().empty()) request.stop.push_back(text);
    }
  }
  if (const auto stop = body.find("stop_token_ids"); stop != body.end() && stop->is_array())
    for (const Json& list : *stop)
      settings.stop_sequences.push_back(
          read_ids(list.is_array() ? list : Json::array({list}), model));
  return request;
}

// A token as text of its own: the word-start mark is a blank.
std::string token_text(const Tokenizer& tokenizer, std::int32_t id) {
  std::string piece = tokenizer.piece(id);
  for (std::size_t at; (at = piece.find("\u2581")) != std::string::npos;) piece.replace(at, 3, " ");
  return piece;
}

OrderedJson log_probs(const Ids& ids, const std::vector<infer::TokenScore>& scores,
                      const Tokenizer& tokenizer) {
  OrderedJson tokens = OrderedJson::array(), own = tokens, top = tokens, offsets = tokens;
  std::size_t offset = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::string text = token_text(tokenizer, ids[i]);
    tokens.push_back(text);
    own.push_back(scores[i].log_prob);
    OrderedJson likeliest = OrderedJson::object();
    for (const auto& [id, value] : scores[i].top) likeliest[token_text(tokenizer, id)] = value;
    top.push_back(likeliest);
    offsets.push_back(offset);
    offset += text.size();
  }
  return {
      {"tokens", tokens}, {"token_logprobs", own}, {"top_logprobs", top}, {"text_offset", offsets}};
}

OrderedJson envelope(const std::string& model) {
  return {{"id", "cmpl-openmoe"},
          {"object", "text_completion"},
          {"created", static_cast<std::int64_t>(std::time(nullptr))},
          {"model", model}};
}

}  // namespace

OrderedJson complete(const Json& body, DecodeModel& model,
                     const std::function<void(const std::string&)>& on_text) {
  const CompletionRequest request = read_request(body, model);
  std::vector<infer::GenerationRequest> requests;
  std::vector<TextOfTokens> texts;
  for (const Ids& prompt : request.prompts) {
    requests.push_back(request.settings);
    requests.back().prompt = prompt;
    requests.back().stream = requests.size() - 1;
    texts.emplace_back(model.tokenizer(), prompt, request.stop);
  }
  std::string sent;
  const auto results =
      model.generator().generate(requests, [&](std::size_t index, const Ids& tokens) {
        if (texts[index].is_stopped(tokens)) return true;
        if (on_text && index == 0) {
          const std::string settled = texts[0].settled(texts[0].text(tokens));
          if (settled.size() > sent.size()) {
            on_text(settled.substr(sent.size()));
            sent = settled;
          }
        }
        return false;
      });
  if (on_text && !results.empty()) {
    const std::string whole = texts[0].text(results[0].tokens);
    if (whole.size() > sent.size()) on_text(whole.substr(sent.size()));
  }
  std::vector<std::vector<infer::TokenScore>> prompt_scores(requests.size());
  if (request.echo && request.settings.num_log_probs >= 0) {
    std::vector<infer::ScoreRequest> to_score;
    for (const Ids& prompt : request.prompts)
      to_score.push_back({prompt, 0, request.settings.num_log_probs});
    prompt_scores = model.generator().score(to_score);
  }

  OrderedJson answer = envelope(model.recipe().name);
  answer["choices"] = OrderedJson::array();
  std::size_t prompt_tokens = 0, new_tokens = 0;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const infer::GenerationResult& result = results[i];
    prompt_tokens += request.prompts[i].size();
    new_tokens += result.tokens.size();
    std::string text = texts[i].text(result.tokens);
    if (request.echo) text.insert(0, model.tokenizer().decode(request.prompts[i]));
    OrderedJson choice = {
        {"text", text},
        {"index", i},
        {"logprobs", nullptr},
        {"finish_reason", result.finish == infer::FinishReason::length ? "length" : "stop"}};
    if (request.settings.num_log_probs >= 0) {
      Ids ids = request.echo ? request.prompts[i] : Ids{};
      std::vector<infer::TokenScore> scores = prompt_scores[i];
      ids.insert(ids.end(), result.tokens.begin(), result.tokens.end());
      scores.insert(scores.end(), result.scores.begin(), result.scores.end());
      choice["logprobs"] = log_probs(ids, scores, model.tokenizer());
    }
    answer["choices"].push_back(choice);
  }
  answer["usage"] = {{"prompt_tokens", prompt_tokens},
                     {"completion_tokens", new_tokens},
                     {"total_tokens", prompt_tokens + new_tokens}};
  return answer;
}

OrderedJson completion_piece(const std::string& text, const std::string& model) {
  OrderedJson piece = envelope(model);
  piece["choices"] = OrderedJson::array(
      {{{"text", text}, {"index", 0}, {"logprobs", nullptr}, {"finish_reason", nullptr}}});
  return piece;
}

}  // namespace openmoe
