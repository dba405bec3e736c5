// run_ordered: one producer thread, many workers, and a consumer (the calling thread) that gets the
// results in the order of production, whatever the number of workers. An exception of any stage
// stops the others and is rethrown, in order too: what was produced before it is still consumed.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace openmoe {

// produce fills its argument and returns false at the end. At most 4 items per worker are in
// flight.
template <typename Item, typename Result>
void run_ordered(int num_workers, const std::function<bool(Item&)>& produce,
                 const std::function<Result(Item&)>& transform,
                 const std::function<void(Result&)>& consume) {
  struct Outcome {
    Result result{};
    std::exception_ptr error;
  };
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::pair<std::int64_t, Item>> waiting;
  std::map<std::int64_t, Outcome> done;
  std::int64_t num_produced = 0;
  std::int64_t num_consumed = 0;
  bool ended = false;    // the producer will add nothing
  bool stopped = false;  // the consumer wants nothing
  const std::int64_t limit = 4 * static_cast<std::int64_t>(num_workers);

  const auto producer = [&] {
    for (;;) {
      Item item{};
      std::exception_ptr error;
      bool more = false;
      try {
        more = produce(item);
      } catch (...) {
        error = std::current_exception();
      }
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return stopped || num_produced - num_consumed < limit; });
      if (stopped) return;
      if (more) {
        waiting.emplace_back(num_produced++, std::move(item));
      } else {
        if (error != nullptr) done[num_produced++].error = error;
        ended = true;
      }
      changed.notify_all();
      if (ended) return;
    }
  };
  const auto worker = [&] {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return stopped || ended || !waiting.empty(); });
      if (stopped || waiting.empty()) return;
      auto [number, item] = std::move(waiting.front());
      waiting.pop_front();
      lock.unlock();
      Outcome outcome;
      try {
        outcome.result = transform(item);
      } catch (...) {
        outcome.error = std::current_exception();
      }
      lock.lock();
      done[number] = std::move(outcome);
      changed.notify_all();
    }
  };

  std::exception_ptr failure;
  {
    std::vector<std::jthread> threads;
    threads.emplace_back(producer);
    for (int i = 0; i < num_workers; ++i) threads.emplace_back(worker);
    for (;;) {
      Outcome outcome;
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] {
          return done.contains(num_consumed) || (ended && num_consumed == num_produced);
        });
        const auto next = done.find(num_consumed);
        if (next == done.end()) break;
        outcome = std::move(next->second);
        done.erase(next);
      }
      try {
        if (outcome.error != nullptr) std::rethrow_exception(outcome.error);
        consume(outcome.result);
      } catch (...) {
        failure = std::current_exception();
        break;
      }
      const std::lock_guard lock(mutex);
      ++num_consumed;
      changed.notify_all();
    }
    const std::lock_guard lock(mutex);
    stopped = true;
    changed.notify_all();
  }
  if (failure != nullptr) std::rethrow_exception(failure);
}

}  // namespace openmoe
