#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "parallel/device_communicator.h"

namespace openmoe {
namespace {

// A sum passes through host memory in pieces of this many elements.
constexpr std::int64_t kPiece = std::int64_t{16} << 20;

class StagedCommunicator final : public DeviceCommunicator {
 public:
  StagedCommunicator(Ops& ops, Communicator& host, std::unique_ptr<Communicator> owned = nullptr)
      : DeviceCommunicator(host, std::move(owned)), ops_(ops) {}

  using DeviceCommunicator::all_gather;
  using DeviceCommunicator::all_reduce_sum;
  void all_reduce_sum(std::span<float> data) override {
    for (std::size_t begin = 0; begin < data.size(); begin += kPiece)
      staged(data.subspan(begin, std::min<std::size_t>(kPiece, data.size() - begin)), floats_,
             [&](std::span<float> piece) { host().all_reduce_sum(piece); });
  }
  void reduce_scatter_sum(std::span<float> data, std::span<const std::int64_t> counts) override {
    staged(data, floats_,
           [&](std::span<float> values) { host().reduce_scatter_sum(values, counts); });
  }
  void all_gather(std::span<float> data, std::span<const std::int64_t> counts) override {
    staged(data, floats_, [&](std::span<float> values) { host().all_gather(values, counts); });
  }
  void all_gather(std::span<BFloat16> data, std::span<const std::int64_t> counts) override {
    staged(data, halves_, [&](std::span<BFloat16> values) { host().all_gather(values, counts); });
  }

  void all_to_all_rows(const void* sent, const RowBlocks& sent_blocks, void* received,
                       const RowBlocks& received_blocks, std::int64_t row_bytes) override {
    const std::vector<std::int64_t> out_rows = row_ends(sent_blocks),
                                    in_rows = row_ends(received_blocks);
    sent_.resize(static_cast<std::size_t>(out_rows.back() * row_bytes));
    received_.resize(static_cast<std::size_t>(in_rows.back() * row_bytes));
    // Blocks lie back to back in host memory, wherever they are on the device.
    const auto bytes_at = [&](const void* first, Device device, std::int64_t row,
                              std::int64_t rows) {
      return Tensor{static_cast<char*>(const_cast<void*>(first)) + row * row_bytes,
                    DType::u8,
                    device,
                    {rows * row_bytes}};
    };
    const auto copy_blocks = [&](const RowBlocks& blocks, const std::vector<std::int64_t>& ends,
                                 const void* device_rows, std::vector<char>& bytes, auto&& copy) {
      for (std::size_t i = 0; i < blocks.num_rows.size(); ++i)
        if (blocks.num_rows[i] > 0)
          copy(bytes_at(device_rows, ops_.device(),
                        blocks.row_offsets.empty() ? ends[i] : blocks.row_offsets[i],
                        blocks.num_rows[i]),
               bytes_at(bytes.data(), Device::host, ends[i], blocks.num_rows[i]));
    };
    copy_blocks(sent_blocks, out_rows, sent, sent_,
                [&](Tensor on_device, Tensor on_host) { ops_.copy(on_host, on_device); });
    host().all_to_all_rows(sent_.data(), {sent_blocks.num_rows, {}}, received_.data(),
                           {received_blocks.num_rows, {}}, row_bytes);
    copy_blocks(received_blocks, in_rows, received, received_,
                [&](Tensor on_device, Tensor on_host) { ops_.copy(on_device, on_host); });
  }

  std::unique_ptr<Communicator> split(int colour, int key) override {
    std::unique_ptr<Communicator> part = host().split(colour, key);
    Communicator& ranks = *part;
    return std::make_unique<StagedCommunicator>(ops_, ranks, std::move(part));
  }

 private:
  // Where each block begins among all, and where the last one ends.
  static std::vector<std::int64_t> row_ends(const RowBlocks& blocks) {
    std::vector<std::int64_t> ends{0};
    std::partial_sum(blocks.num_rows.begin(), blocks.num_rows.end(), std::back_inserter(ends));
    return ends;
  }

  template <typename T, typename Verb>
  void staged(std::span<T> data, std::vector<T>& room, Verb&& verb) {
    if (data.empty()) {
      verb(data);
      return;
    }
    room.resize(data.size());
    const Tensor on_host = host_view(room.data(), {static_cast<std::int64_t>(data.size())});
    const Tensor on_device{data.data(), on_host.dtype, ops_.device(), on_host.shape};
    ops_.copy(on_host, on_device);
    verb(std::span<T>(room));
    ops_.copy(on_device, on_host);
  }

  Ops& ops_;
  std::vector<float> floats_;
  std::vector<BFloat16> halves_;
  std::vector<char> sent_, received_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(Ops& ops, Communicator& group) {
  return std::make_unique<StagedCommunicator>(ops, group);
}

}  // namespace openmoe
