#include "parallel/observed_communicator.h"

#include <numeric>
#include <utility>

namespace openmoe {
namespace {

class ObservedCommunicator : public Communicator {
 public:
  // `owned` may be null where someone else owns `inner`.
  ObservedCommunicator(Communicator& inner, std::unique_ptr<Communicator> owned, int world_rank,
                       CollectiveObservers& observers, CollectiveGroup& group)
      : inner_(inner),
        owned_(std::move(owned)),
        world_rank_(world_rank),
        observers_(observers),
        group_(group) {}

  int size() const override { return inner_.size(); }
  int rank_in_group() const override { return inner_.rank_in_group(); }
  std::string description() const override { return inner_.description(); }
  void set_name(const char* name) override { group_.name = name; }

  void all_reduce_sum(std::span<float> data) override {
    observe("all_reduce_sum of f32", data.size_bytes(), [&] { inner_.all_reduce_sum(data); });
  }
  void start_all_reduce_sum(std::span<float> data) override {
    observe("start of all_reduce_sum of f32", data.size_bytes(),
            [&] { inner_.start_all_reduce_sum(data); });
  }
  void advance() override { inner_.advance(); }
  void wait_for_sums() override {
    observe("wait for all_reduce_sum of f32", 0, [&] { inner_.wait_for_sums(); });
  }
  void all_reduce_sum(std::span<double> data) override {
    observe("all_reduce_sum of f64", data.size_bytes(), [&] { inner_.all_reduce_sum(data); });
  }
  void all_reduce_sum(std::span<std::int64_t> data) override {
    observe("all_reduce_sum of i64", data.size_bytes(), [&] { inner_.all_reduce_sum(data); });
  }
  void all_reduce_max(std::span<std::int64_t> data) override {
    observe("all_reduce_max of i64", data.size_bytes(), [&] { inner_.all_reduce_max(data); });
  }
  void reduce_scatter_sum(std::span<float> data, std::span<const std::int64_t> counts) override {
    observe("reduce_scatter_sum of f32", data.size_bytes(),
            [&] { inner_.reduce_scatter_sum(data, counts); });
  }
  void all_to_all(std::span<const std::int64_t> sent, std::span<std::int64_t> received,
                  std::int64_t count) override {
    observe("all_to_all", sent.size_bytes(), [&] { inner_.all_to_all(sent, received, count); });
  }
  void all_to_all_rows(const void* sent, const RowBlocks& sent_blocks, void* received,
                       const RowBlocks& received_blocks, std::int64_t row_bytes) override {
    observe("all_to_all_rows", bytes_of(sent_blocks, row_bytes), [&] {
      inner_.all_to_all_rows(sent, sent_blocks, received, received_blocks, row_bytes);
    });
  }
  void start_all_to_all_rows(std::int64_t slot, const void* sent, const RowBlocks& sent_blocks,
                             void* received, const RowBlocks& received_blocks,
                             std::int64_t row_bytes) override {
    observe("start of all_to_all_rows", bytes_of(sent_blocks, row_bytes), [&] {
      inner_.start_all_to_all_rows(slot, sent, sent_blocks, received, received_blocks, row_bytes);
    });
  }
  void wait_for_rows(std::int64_t slot) override {
    observe("wait for all_to_all_rows", 0, [&] { inner_.wait_for_rows(slot); });
  }
  void all_gather(std::span<float> data, std::span<const std::int64_t> counts) override {
    const std::int64_t own = counts[static_cast<std::size_t>(rank_in_group())];
    observe("all_gather of f32", static_cast<std::size_t>(own) * sizeof(float),
            [&] { inner_.all_gather(data, counts); });
  }
  void all_gather(std::span<BFloat16> data, std::span<const std::int64_t> counts) override {
    const std::int64_t own = counts[static_cast<std::size_t>(rank_in_group())];
    observe("all_gather of bf16", static_cast<std::size_t>(own) * sizeof(BFloat16),
            [&] { inner_.all_gather(data, counts); });
  }
  std::vector<std::string> all_gather(const std::string& bytes) override {
    std::vector<std::string> gathered;
    observe("all_gather of bytes", bytes.size(), [&] { gathered = inner_.all_gather(bytes); });
    return gathered;
  }
  void broadcast(std::string& bytes, int root) override {
    observe("broadcast", root == rank_in_group() ? bytes.size() : 0,
            [&] { inner_.broadcast(bytes, root); });
  }
  void barrier() override {
    observe("barrier", 0, [&] { inner_.barrier(); });
  }
  std::unique_ptr<Communicator> split(int colour, int key) override {
    std::unique_ptr<Communicator> part;
    observe("split", 0, [&] { part = inner_.split(colour, key); });
    return observed_group(std::move(part));
  }
  // Its calls are numbered among those of this group.
  std::unique_ptr<Communicator> twin(const MakeTwin& make) override {
    std::unique_ptr<Communicator> other = inner_.twin(make);
    Communicator& inner = *other;
    return std::make_unique<ObservedCommunicator>(inner, std::move(other), world_rank_, observers_,
                                                  group_);
  }

 private:
  static std::size_t bytes_of(const RowBlocks& blocks, std::int64_t row_bytes) {
    return static_cast<std::size_t>(row_bytes * std::accumulate(blocks.num_rows.begin(),
                                                                blocks.num_rows.end(),
                                                                std::int64_t{0}));
  }

  template <typename Call>
  void observe(const char* verb, std::size_t bytes, Call&& make_call) {
    const CollectiveCall call{&group_, verb, ++group_.num_calls, static_cast<std::int64_t>(bytes)};
    observers_.begin(call);
    make_call();
    observers_.end(call);
  }

  std::unique_ptr<Communicator> observed_group(std::unique_ptr<Communicator> part) {
    std::vector<int> world_ranks;
    for (const std::string& rank : part->all_gather(std::to_string(world_rank_)))
      world_ranks.push_back(std::stoi(rank));
    CollectiveGroup& group = observers_.join(std::move(world_ranks));
    Communicator& inner = *part;
    return std::make_unique<ObservedCommunicator>(inner, std::move(part), world_rank_, observers_,
                                                  group);
  }

  Communicator& inner_;
  std::unique_ptr<Communicator> owned_;
  int world_rank_;
  CollectiveObservers& observers_;
  CollectiveGroup& group_;
};

}  // namespace

std::unique_ptr<Communicator> make_observed_communicator(Communicator& world,
                                                         CollectiveObservers& observers) {
  std::vector<int> ranks(static_cast<std::size_t>(world.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  CollectiveGroup& group = observers.join(std::move(ranks));
  auto observed = std::make_unique<ObservedCommunicator>(world, nullptr, world.rank_in_group(),
                                                         observers, group);
  observed->set_name("world");
  return observed;
}

}  // namespace openmoe
