#include "data/prefetcher.h"

#include <algorithm>

namespace openmoe {

Prefetcher::Prefetcher(Build build) : build_(std::move(build)), thread_([this] { run(); }) {}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::list<Prefetcher::Job>::iterator Prefetcher::find(const BatchRequest& request) {
  return std::find_if(jobs_.begin(), jobs_.end(),
                      [&](const Job& job) { return job.request == request; });
}

void Prefetcher::start(const BatchRequest& request) {
  const std::lock_guard lock(mutex_);
  if (find(request) != jobs_.end()) return;
  jobs_.push_back({request, State::waiting, {}, nullptr});
  changed_.notify_all();
}

bool Prefetcher::take(const BatchRequest& request, Batch& batch) {
  std::unique_lock lock(mutex_);
  auto job = find(request);
  if (job == jobs_.end()) return false;
  changed_.wait(lock, [&] { return job->state == State::done; });
  const std::exception_ptr error = job->error;
  std::swap(batch, job->batch);
  jobs_.erase(job);
  std::erase_if(jobs_, [&](const Job& other) {
    return other.state != State::building && other.request.step < request.step;
  });
  lock.unlock();
  if (error != nullptr) std::rethrow_exception(error);
  return true;
}

void Prefetcher::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    std::list<Job>::iterator job;
    changed_.wait(lock, [&] {
      job = std::find_if(jobs_.begin(), jobs_.end(),
                         [](const Job& entry) { return entry.state == State::waiting; });
      return stopped_ || job != jobs_.end();
    });
    if (stopped_) return;
    job->state = State::building;
    lock.unlock();
    try {
      build_(job->request, job->batch);
    } catch (...) {
      job->error = std::current_exception();
    }
    lock.lock();
    job->state = State::done;
    changed_.notify_all();
  }
}

}  // namespace openmoe
