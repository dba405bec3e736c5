#include "parallel/planned_group.h"

#include "core/base/check.h"

namespace openmoe {
namespace {

class PlannedGroup : public Communicator {
 public:
  explicit PlannedGroup(int size) : size_(size) {}

  int size() const override { return size_; }
  int rank_in_group() const override { return 0; }
  std::string description() const override { return concat("rank 0 of ", size_, " planned ranks"); }

  void all_reduce_sum(std::span<float>) override { refuse("all_reduce_sum"); }
  void all_reduce_sum(std::span<double>) override { refuse("all_reduce_sum"); }
  void all_reduce_sum(std::span<std::int64_t>) override { refuse("all_reduce_sum"); }
  void all_reduce_max(std::span<std::int64_t>) override { refuse("all_reduce_max"); }
  void reduce_scatter_sum(std::span<float>, std::span<const std::int64_t>) override {
    refuse("reduce_scatter_sum");
  }
  void all_to_all(std::span<const std::int64_t>, std::span<std::int64_t>, std::int64_t) override {
    refuse("all_to_all");
  }
  void all_to_all_rows(const void*, const RowBlocks&, void*, const RowBlocks&,
                       std::int64_t) override {
    refuse("all_to_all_rows");
  }
  void all_gather(std::span<float>, std::span<const std::int64_t>) override {
    refuse("all_gather");
  }
  void all_gather(std::span<BFloat16>, std::span<const std::int64_t>) override {
    refuse("all_gather");
  }
  std::vector<std::string> all_gather(const std::string&) override { refuse("all_gather"); }
  void broadcast(std::string&, int) override { refuse("broadcast"); }
  void barrier() override { refuse("barrier"); }
  std::unique_ptr<Communicator> split(int, int) override {
    return std::make_unique<PlannedGroup>(1);
  }

 private:
  [[noreturn]] static void refuse(const char* verb) {
    throw std::logic_error(concat(verb, " on a group that is only planned"));
  }

  int size_;
};

}  // namespace

std::unique_ptr<Communicator> make_planned_group(int size) {
  return std::make_unique<PlannedGroup>(size);
}

}  // namespace openmoe
