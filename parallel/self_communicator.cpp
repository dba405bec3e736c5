#include <algorithm>
#include <cstring>

#include "core/base/check.h"
#include "parallel/communicator.h"

namespace openmoe {
namespace {

class SelfCommunicator : public Communicator {
 public:
  int size() const override { return 1; }
  int rank_in_group() const override { return 0; }
  std::string description() const override { return "rank 0 of 1"; }

  void all_reduce_sum(std::span<float>) override {}
  void all_reduce_sum(std::span<double>) override {}
  void all_reduce_sum(std::span<std::int64_t>) override {}
  void all_reduce_max(std::span<std::int64_t>) override {}
  void reduce_scatter_sum(std::span<float>, std::span<const std::int64_t>) override {}

  void all_to_all(std::span<const std::int64_t> sent, std::span<std::int64_t> received,
                  std::int64_t count) override {
    OPENMOE_CHECK(sent.size() == static_cast<std::size_t>(count) && received.size() == sent.size(),
                  sent.size(), " and ", received.size(), " elements for 1 rank x ", count);
    std::copy(sent.begin(), sent.end(), received.begin());
  }

  void all_to_all_rows(const void* sent, const RowBlocks& sent_blocks, void* received,
                       const RowBlocks& received_blocks, std::int64_t row_bytes) override {
    OPENMOE_CHECK(sent_blocks.num_rows.size() == 1 && received_blocks.num_rows.size() == 1,
                  sent_blocks.num_rows.size(), " and ", received_blocks.num_rows.size(),
                  " blocks for 1 rank");
    const std::int64_t num_rows = sent_blocks.num_rows[0];
    OPENMOE_CHECK(num_rows == received_blocks.num_rows[0], num_rows, " rows sent, ",
                  received_blocks.num_rows[0], " expected");
    if (num_rows == 0) return;
    std::memcpy(static_cast<char*>(received) + first_row(received_blocks) * row_bytes,
                static_cast<const char*>(sent) + first_row(sent_blocks) * row_bytes,
                static_cast<std::size_t>(num_rows * row_bytes));
  }

  void all_gather(std::span<float> data, std::span<const std::int64_t> counts) override {
    check_gather(data.size(), counts);
  }
  void all_gather(std::span<BFloat16> data, std::span<const std::int64_t> counts) override {
    check_gather(data.size(), counts);
  }
  std::vector<std::string> all_gather(const std::string& bytes) override { return {bytes}; }
  void broadcast(std::string&, int root) override { OPENMOE_CHECK(root == 0, "root ", root); }
  void barrier() override {}
  std::unique_ptr<Communicator> split(int colour, int) override {
    OPENMOE_CHECK(colour >= 0, "colour ", colour);
    return make_self_communicator();
  }

 private:
  static void check_gather(std::size_t size, std::span<const std::int64_t> counts) {
    OPENMOE_CHECK(counts.size() == 1 && size == static_cast<std::size_t>(counts[0]), size,
                  " elements in ", counts.size(), " pieces for 1 rank");
  }
  static std::int64_t first_row(const RowBlocks& blocks) {
    return blocks.row_offsets.empty() ? 0 : blocks.row_offsets[0];
  }
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() {
  return std::make_unique<SelfCommunicator>();
}

}  // namespace openmoe
