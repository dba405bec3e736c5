// `openmoe serve RUN`: completions over HTTP on this machine alone, in the form of OpenAI's API,
// for clients such as lm-evaluation-harness.
//
// The server's threads only read and write; requests wait in a queue for the main thread, which
// computes one after the other, on all ranks together.
#include <httplib.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "apps/agree.h"
#include "apps/command.h"
#include "apps/completions.h"
#include "apps/decode_model.h"
#include "apps/prompt.h"
#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr const char* kHost = "127.0.0.1";
constexpr std::size_t kMaxBodyBytes = 64 << 20;

struct ServeOptions {
  DecodeModelOptions model;
  int port = 8000;
};

std::atomic<bool> stop_asked{false};

void ask_to_stop(int) {
  stop_asked = true;
}

std::string dump(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

std::string error_body(const std::string& message, const char* type) {
  return dump({{"error", {{"message", message}, {"type", type}}}});
}

// One request on its way: filled by the main thread, read by the server's.
struct Job {
  Json body;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::string> pieces;  // of a stream
  bool is_done = false;
  int status = 200;
  std::string answer;

  void add(const std::string& piece) {
    const std::lock_guard lock(mutex);
    pieces.push_back(piece);
    changed.notify_all();
  }
  void finish(int code, const std::string& text) {
    const std::lock_guard lock(mutex);
    status = code;
    answer = text;
    is_done = true;
    changed.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return is_done; });
  }
  // The next piece of a stream; false at its end.
  bool next(std::string& piece) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return is_done || !pieces.empty(); });
    if (pieces.empty()) return false;
    piece = pieces.front();
    pieces.pop_front();
    return true;
  }
};

class JobQueue {
 public:
  void push(std::shared_ptr<Job> job) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    changed_.notify_one();
  }
  // Null after a while without one.
  std::shared_ptr<Job> pop() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::milliseconds(100), [&] { return !jobs_.empty(); });
    if (jobs_.empty()) return nullptr;
    auto job = jobs_.front();
    jobs_.pop_front();
    return job;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> jobs_;
};

// Computes a job on this rank; the others make the same calls. `job` is null on them.
void compute(const Json& body, DecodeModel& model, Job* job) {
  const bool streams = body.is_object() && body.value("stream", Json(false)) == true;
  const std::string& name = model.recipe().name;
  const auto on_text = [&](const std::string& text) {
    if (job != nullptr) job->add("data: " + dump(completion_piece(text, name)) + "\n\n");
  };
  try {
    if (streams && body.contains("prompt") && body["prompt"].is_array() &&
        !body["prompt"].empty() && !body["prompt"][0].is_number())
      throw UserError("stream: allowed for a single prompt");
    const OrderedJson answer = streams ? complete(body, model, on_text) : complete(body, model);
    if (job == nullptr) return;
    if (streams) {
      OrderedJson last = answer;
      last["choices"][0]["text"] = "";
      job->add("data: " + dump(last) + "\n\ndata: [DONE]\n\n");
    }
    job->finish(200, dump(answer));
  } catch (const UserError& error) {
    if (job != nullptr) job->finish(400, error_body(error.what(), "invalid_request_error"));
  } catch (const nlohmann::json::exception& error) {
    if (job != nullptr) job->finish(400, error_body(error.what(), "invalid_request_error"));
  }
}

class Server {
 public:
  Server(const DecodeModel& model, JobQueue& queue) : model_(model), queue_(queue) {
    server_.set_payload_max_length(kMaxBodyBytes);
    server_.Get("/health", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("ok", "text/plain");
    });
    server_.Get("/v1/models", [this](const httplib::Request&, httplib::Response& response) {
      reply(response,
            {{"object", "list"},
             {"data", OrderedJson::array({{{"id", model_.recipe().name}, {"object", "model"}}})}});
    });
    server_.Post("/v1/completions",
                 [this](const httplib::Request& request, httplib::Response& response) {
                   run(request, response);
                 });
    add_tokenizer();
  }

  // Starts to listen. Returns the port. Throws UserError when it is taken.
  int start(int port) {
    const bool bound = port == 0 ? (port = server_.bind_to_any_port(kHost)) > 0
                                 : server_.bind_to_port(kHost, port);
    if (!bound)
      throw UserError(concat("--port ", port, ": cannot listen there on ", kHost,
                             "; another program may; 0 takes a free one"));
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    // A stop before the thread listens would be lost.
    while (!server_.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return port;
  }
  void stop() {
    server_.stop();
    if (thread_.joinable()) thread_.join();
  }

 private:
  static void reply(httplib::Response& response, const OrderedJson& json) {
    response.set_content(dump(json), "application/json");
  }
  static void refuse(httplib::Response& response, const std::string& message) {
    response.status = 400;
    response.set_content(error_body(message, "invalid_request_error"), "application/json");
  }

  void run(const httplib::Request& request, httplib::Response& response) {
    const auto job = std::make_shared<Job>();
    job->body = Json::parse(request.body, nullptr, false);
    if (!job->body.is_object()) return refuse(response, "the body is not a JSON object");
    queue_.push(job);
    const bool streams = job->body.value("stream", Json(false)) == true;
    std::string piece;
    if (streams && job->next(piece)) {
      response.set_chunked_content_provider(
          "text/event-stream",
          [job, piece, first = true](std::size_t, httplib::DataSink& sink) mutable {
            if (!first && !job->next(piece)) {
              sink.done();
              return true;
            }
            first = false;
            return sink.write(piece.data(), piece.size());
          });
      return;
    }
    job->wait();
    response.status = job->status;
    response.set_content(job->answer, "application/json");
  }

  // What lm-evaluation-harness asks of a server that has the tokenizer (its "remote" backend).
  void add_tokenizer() {
    server_.Get("/tokenizer_info", [](const httplib::Request&, httplib::Response& response) {
      reply(response, {{"tokenizer_class", "SentencePiece"},
                       {"bos_token", "<pad>"},
                       {"eos_token", "</s>"},
                       {"pad_token", "<pad>"}});
    });
    server_.Post("/tokenize", [this](const httplib::Request& request, httplib::Response& response) {
      const Json body = Json::parse(request.body, nullptr, false);
      if (!body.is_object() || !body.contains("prompt") || !body["prompt"].is_string())
        return refuse(response, "tokenize: allowed: {\"prompt\": \"text\"}");
      const std::string text = body["prompt"];
      std::vector<std::int32_t> ids;
      try {
        // The special tokens by name, when they stand alone; inside text they are text.
        if (text == "</s>")
          ids = {Tokenizer::kEos};
        else if (text == "<pad>")
          ids = {Tokenizer::kPad};
        else
          ids = encode_prompt(model_.tokenizer(), text);
      } catch (const UserError& error) {
        return refuse(response, error.what());
      }
      reply(response, {{"tokens", ids}, {"count", ids.size()}, {"max_model_len", max_length()}});
    });
    server_.Post("/detokenize",
                 [this](const httplib::Request& request, httplib::Response& response) {
                   const Json body = Json::parse(request.body, nullptr, false);
                   if (!body.is_object() || !body.contains("tokens") || !body["tokens"].is_array())
                     return refuse(response, "detokenize: allowed: {\"tokens\": [ids]}");
                   std::vector<std::int32_t> ids;
                   for (const Json& id : body["tokens"]) {
                     if (!id.is_number_integer())
                       return refuse(response, "detokenize: allowed: {\"tokens\": [ids]}");
                     ids.push_back(id.get<std::int32_t>());
                   }
                   reply(response, {{"prompt", model_.tokenizer().decode(ids)}});
                 });
  }
  std::int64_t max_length() const {
    return const_cast<DecodeModel&>(model_).decoder().options().max_length;
  }

  const DecodeModel& model_;
  JobQueue& queue_;
  httplib::Server server_;
  std::thread thread_;
};

int run_serve(const ServeOptions& options, CommandContext& context) {
  Communicator& world = context.mpi.world();
  const auto grid = make_decode_grid(world, options.model);
  DecodeModel model(options.model, *grid);
  JobQueue queue;
  std::unique_ptr<Server> server;
  on_root(world, [&] {
    server = std::make_unique<Server>(model, queue);
    const int port = server->start(options.port);
    std::signal(SIGINT, ask_to_stop);
    std::signal(SIGTERM, ask_to_stop);
    std::printf("serving %s on http://%s:%d/v1/completions\n", model.checkpoint().c_str(), kHost,
                port);
    std::fflush(stdout);
  });
  for (;;) {
    std::shared_ptr<Job> job;
    std::string text;  // "" ends the loop of every rank
    if (server != nullptr) {
      while (job == nullptr && !stop_asked) job = queue.pop();
      if (job != nullptr) text = job->body.dump(-1, ' ', false, Json::error_handler_t::replace);
    }
    world.broadcast(text, 0);
    if (text.empty()) break;
    compute(Json::parse(text), model, job.get());
  }
  if (server != nullptr) server->stop();
  return kExitSuccess;
}

}  // namespace

void register_serve(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<ServeOptions>();
  CLI::App* command = app.add_subcommand(
      "serve", "completions of a checkpoint over HTTP on 127.0.0.1, in the form of OpenAI's API");
  add_decode_options(*command, options->model);
  command->add_option("--port", options->port, "to listen on; 0: a free one, which is printed")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command->callback([&context, options] {
    context.run = [&context, options] { return run_serve(*options, context); };
  });
}

}  // namespace openmoe
