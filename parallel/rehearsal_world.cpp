#include "parallel/rehearsal_world.h"

#include <algorithm>
#include <array>
#include <vector>

#include "core/base/check.h"

namespace openmoe {
namespace {

class RehearsalGroup : public Communicator {
 public:
  RehearsalGroup(std::int64_t size, std::int64_t rank) : size_(size), rank_(rank) {}

  int size() const override { return static_cast<int>(size_); }
  int rank_in_group() const override { return static_cast<int>(rank_); }
  std::string description() const override {
    return concat("rank ", rank_, " of ", size_, " ranks of a rehearsal");
  }

  void all_reduce_sum(std::span<float>) override {}
  void all_reduce_sum(std::span<double>) override {}
  void all_reduce_sum(std::span<std::int64_t>) override {}
  void all_reduce_max(std::span<std::int64_t>) override {}
  void reduce_scatter_sum(std::span<float>, std::span<const std::int64_t>) override {}
  void all_to_all(std::span<const std::int64_t>, std::span<std::int64_t>, std::int64_t) override {}
  void all_to_all_rows(const void*, const RowBlocks&, void*, const RowBlocks&,
                       std::int64_t) override {}
  void all_gather(std::span<float>, std::span<const std::int64_t>) override {}
  void all_gather(std::span<BFloat16>, std::span<const std::int64_t>) override {}
  // As if all brought the same.
  std::vector<std::string> all_gather(const std::string& bytes) override {
    return std::vector<std::string>(static_cast<std::size_t>(size_), bytes);
  }
  void broadcast(std::string&, int) override {}
  void barrier() override {}
  std::unique_ptr<Communicator> split(int, int) override {
    OPENMOE_CHECK(false, "a split of ", description());
    return nullptr;
  }

 private:
  std::int64_t size_, rank_;
};

class RehearsalWorld : public RehearsalGroup {
 public:
  explicit RehearsalWorld(const RehearsalGrid& grid)
      : RehearsalGroup(grid.ranks(), grid.world_rank),
        sizes_{grid.dp * grid.ep, grid.ep, grid.dp, grid.tp} {}

  std::unique_ptr<Communicator> split(int, int key) override {
    OPENMOE_CHECK(num_splits_ < sizes_.size() && key < sizes_[num_splits_], "split ", num_splits_,
                  " with key ", key);
    return std::make_unique<RehearsalGroup>(sizes_[num_splits_++], key);
  }

 private:
  std::array<std::int64_t, 4> sizes_;
  std::size_t num_splits_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_rehearsal_world(const RehearsalGrid& grid) {
  return std::make_unique<RehearsalWorld>(grid);
}

}  // namespace openmoe
