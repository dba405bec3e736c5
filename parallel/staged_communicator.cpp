#include <algorithm>
#include <vector>

#include "core/base/check.h"
#include "parallel/device_communicator.h"

namespace openmoe {
namespace {

// An all-reduce passes through host memory in pieces of this many elements.
constexpr std::int64_t kPiece = std::int64_t{16} << 20;

class StagedCommunicator final : public DeviceCommunicator {
 public:
  StagedCommunicator(Ops& ops, Communicator& group) : ops_(ops), group_(group) {}

  const char* name() const override { return "staged"; }
  Communicator& group() override { return group_; }

  void all_reduce_sum(Tensor data) override {
    OPENMOE_CHECK(data.dtype == DType::f32, "sum of ", name_of(data.dtype));
    if (group_.size() == 1) return;
    const std::int64_t count = data.num_elements();
    const Tensor flat = data.reshaped({count});
    for (std::int64_t begin = 0; begin < count; begin += kPiece) {
      const Tensor piece = flat.rows(begin, std::min(count, begin + kPiece));
      floats_.resize(static_cast<std::size_t>(piece.num_elements()));
      const Tensor host = host_view(floats_.data(), piece.shape);
      ops_.copy(host, piece);
      group_.all_reduce_sum(std::span<float>(floats_));
      ops_.copy(piece, host);
    }
  }

  void all_to_all_rows(Tensor sent, const RowBlocks& sent_blocks, Tensor received,
                       const RowBlocks& received_blocks) override {
    OPENMOE_CHECK(sent.dtype == received.dtype && sent.size(1) == received.size(1), "rows of ",
                  name_of(sent.dtype), " ", sent.shape.to_string(), " and ",
                  name_of(received.dtype), " ", received.shape.to_string());
    const std::int64_t row_bytes = sent.size(1) * size_of(sent.dtype);
    const std::vector<std::int64_t> out_rows = block_rows(sent_blocks),
                                    in_rows = block_rows(received_blocks);
    sent_.resize(static_cast<std::size_t>(out_rows.back() * row_bytes));
    received_.resize(static_cast<std::size_t>(in_rows.back() * row_bytes));
    // Blocks lie back to back in host memory, wherever they are on the device.
    const auto host_rows = [&](std::vector<char>& bytes, std::int64_t first, std::int64_t rows) {
      return Tensor{
          bytes.data() + first * row_bytes, sent.dtype, Device::host, {rows, sent.size(1)}};
    };
    for (std::size_t i = 0; i < sent_blocks.num_rows.size(); ++i) {
      const std::int64_t rows = sent_blocks.num_rows[i],
                         first = first_row(sent_blocks, out_rows, i);
      if (rows > 0) ops_.copy(host_rows(sent_, out_rows[i], rows), sent.rows(first, first + rows));
    }
    group_.all_to_all_rows(sent_.data(), {sent_blocks.num_rows, {}}, received_.data(),
                           {received_blocks.num_rows, {}}, row_bytes);
    for (std::size_t i = 0; i < received_blocks.num_rows.size(); ++i) {
      const std::int64_t rows = received_blocks.num_rows[i],
                         first = first_row(received_blocks, in_rows, i);
      if (rows > 0)
        ops_.copy(received.rows(first, first + rows), host_rows(received_, in_rows[i], rows));
    }
  }

 private:
  // Prefix sums of the blocks' rows.
  static std::vector<std::int64_t> block_rows(const RowBlocks& blocks) {
    std::vector<std::int64_t> offsets{0};
    for (const std::int64_t rows : blocks.num_rows) offsets.push_back(offsets.back() + rows);
    return offsets;
  }
  static std::int64_t first_row(const RowBlocks& blocks, const std::vector<std::int64_t>& offsets,
                                std::size_t i) {
    return blocks.row_offsets.empty() ? offsets[i] : blocks.row_offsets[i];
  }

  Ops& ops_;
  Communicator& group_;
  std::vector<float> floats_;
  std::vector<char> sent_, received_;
};

}  // namespace

std::unique_ptr<DeviceCommunicator> make_staged_communicator(Ops& ops, Communicator& group) {
  return std::make_unique<StagedCommunicator>(ops, group);
}

}  // namespace openmoe
