// Ranks of a decoding job as threads of one process.
#pragma once

#include <barrier>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "core/infer/decoder.h"

namespace openmoe::test {

// One group of ranks: collectives as every rank leaves its buffer for the others to read.
class ThreadGroup {
 public:
  explicit ThreadGroup(std::int64_t size)
      : barrier_(static_cast<std::ptrdiff_t>(size)), buffers_(static_cast<std::size_t>(size)) {}

  void sum(std::int64_t self, std::span<float> values) {
    buffers_[static_cast<std::size_t>(self)] = values;
    barrier_.arrive_and_wait();
    std::vector<float> total(values.size(), -0.0f);
    for (const std::span<float> of_rank : buffers_)
      for (std::size_t i = 0; i < total.size(); ++i) total[i] += of_rank[i];
    barrier_.arrive_and_wait();
    std::copy(total.begin(), total.end(), values.begin());
  }

  void gather(std::int64_t self, std::span<float> data, std::span<const std::int64_t> counts) {
    buffers_[static_cast<std::size_t>(self)] = data;
    barrier_.arrive_and_wait();
    std::size_t begin = 0;
    for (std::size_t r = 0; r < buffers_.size(); ++r) {
      const auto count = static_cast<std::size_t>(counts[r]);
      if (r != static_cast<std::size_t>(self))
        std::copy_n(buffers_[r].data() + begin, count, data.data() + begin);
      begin += count;
    }
    barrier_.arrive_and_wait();
  }

 private:
  std::barrier<> barrier_;
  std::vector<std::span<float>> buffers_;
};

// ep x tp ranks, tp fastest.
class ThreadRanks {
 public:
  ThreadRanks(std::int64_t ep, std::int64_t tp) : ep_(ep), tp_(tp) {
    for (std::int64_t t = 0; t < tp; ++t) expert_.push_back(std::make_unique<ThreadGroup>(ep));
    for (std::int64_t e = 0; e < ep; ++e) tensor_.push_back(std::make_unique<ThreadGroup>(tp));
  }

  // body(rank, its groups) on every rank at once.
  void run(const std::function<void(std::int64_t, infer::DecodeGroups)>& body) {
    std::vector<std::thread> threads;
    for (std::int64_t rank = 0; rank < ep_ * tp_; ++rank)
      threads.emplace_back([this, &body, rank] { body(rank, groups(rank)); });
    for (std::thread& thread : threads) thread.join();
  }

 private:
  infer::DecodeGroups groups(std::int64_t rank) {
    const std::int64_t e = rank / tp_, t = rank % tp_;
    ThreadGroup& expert = *expert_[static_cast<std::size_t>(t)];
    ThreadGroup& tensor = *tensor_[static_cast<std::size_t>(e)];
    infer::DecodeGroups groups;
    if (ep_ > 1)
      groups.expert_sum = [&expert, e](std::span<float> values) { expert.sum(e, values); };
    if (tp_ > 1) {
      groups.tensor_sum = [&tensor, t](std::span<float> values) { tensor.sum(t, values); };
      groups.tensor_gather = [&tensor, t](std::span<float> data,
                                          std::span<const std::int64_t> counts) {
        tensor.gather(t, data, counts);
      };
    }
    return groups;
  }

  std::int64_t ep_, tp_;
  std::vector<std::unique_ptr<ThreadGroup>> expert_, tensor_;
};

}  // namespace openmoe::test
