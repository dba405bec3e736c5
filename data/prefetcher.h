// Prefetcher: one thread that builds batches ahead of their use. What it built is handed over once;
// errors surface in take.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <list>
#include <mutex>
#include <thread>

#include "core/batch.h"

namespace openmoe {

struct BatchRequest {
  std::int64_t step = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool operator==(const BatchRequest&) const = default;
};

class Prefetcher {
 public:
  using Build = std::function<void(const BatchRequest&, Batch&)>;
  explicit Prefetcher(Build build);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  void start(const BatchRequest& request);  // a request already under way is not repeated
  // Waits for the request and moves its batch out; false when it was never started. Rethrows what
  // building threw. Requests of earlier steps that nobody took are forgotten.
  bool take(const BatchRequest& request, Batch& batch);

 private:
  enum class State { waiting, building, done };
  struct Job {
    BatchRequest request;
    State state = State::waiting;
    Batch batch;
    std::exception_ptr error;
  };
  void run();
  std::list<Job>::iterator find(const BatchRequest& request);

  Build build_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Job> jobs_;
  bool stopped_ = false;
  std::thread thread_;
};

}  // namespace openmoe
