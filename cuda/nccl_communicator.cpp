// DeviceCommunicator over NCCL. The ranks find each other through the group's host communicator.
// Transfers run on the device's stream for them; events order them with the ops: nothing waits on
// the host.
#include <nccl.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "core/base/error.h"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/device_ops.h"
#include "parallel/device_communicator.h"

namespace openmoe {
namespace {

class NcclCommunicator final : public DeviceCommunicator {
 public:
  NcclCommunicator(CudaOps& ops, Communicator& host, std::unique_ptr<Communicator> owned = nullptr)
      : DeviceCommunicator(host, std::move(owned)), ops_(ops) {
    int version = 0;  // asked for by every rank, so that all of them learn where NCCL is missing
    check(ncclGetVersion(&version), "ncclGetVersion");
    ncclUniqueId id{};
    std::string bytes;
    if (rank_in_group() == 0) {
      check(ncclGetUniqueId(&id), "ncclGetUniqueId");
      bytes.assign(id.internal, sizeof id.internal);
    }
    broadcast(bytes, 0);
    OPENMOE_CHECK(bytes.size() == sizeof id.internal, bytes.size(), " bytes of an NCCL id");
    std::memcpy(id.internal, bytes.data(), bytes.size());
    check(ncclCommInitRank(&comm_, size(), id, rank_in_group()), "ncclCommInitRank");
    for (cudaEvent_t* event : {&ready_, &sums_done_})
      OPENMOE_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  }
  // Destroying it takes all ranks of a host. A rank that fails leaves it to the end of the process,
  // since the others may not come here before they have learnt of the failure.
  ~NcclCommunicator() override {
    if (std::uncaught_exceptions() > 0) return;
    cudaStreamSynchronize(ops_.transfer_stream());
    ncclCommDestroy(comm_);
    cudaEventDestroy(ready_);
    cudaEventDestroy(sums_done_);
    for (const cudaEvent_t event : rows_done_) cudaEventDestroy(event);
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  using DeviceCommunicator::all_gather;
  using DeviceCommunicator::all_reduce_sum;
  void all_reduce_sum(std::span<float> data) override {
    start_all_reduce_sum(data);
    wait_for_sums();
  }
  void start_all_reduce_sum(std::span<float> data) override {
    if (data.empty()) return;
    begin();
    check(
        ncclAllReduce(data.data(), data.data(), data.size(), ncclFloat32, ncclSum, comm_, stream()),
        "ncclAllReduce");
  }
  void wait_for_sums() override { hold_ops(sums_done_); }

  // NCCL's own verb takes pieces of one size.
  void reduce_scatter_sum(std::span<float> data, std::span<const std::int64_t> counts) override {
    if (data.empty()) return;
    begin();
    if (are_equal(counts)) {
      const auto count = static_cast<std::size_t>(counts[0]);
      check(ncclReduceScatter(data.data(), data.data() + piece_begin(counts, rank_in_group()),
                              count, ncclFloat32, ncclSum, comm_, stream()),
            "ncclReduceScatter");
    } else {
      for_pieces(data, counts, [&](float* piece, std::size_t count, int root) {
        check(ncclReduce(piece, piece, count, ncclFloat32, ncclSum, root, comm_, stream()),
              "ncclReduce");
      });
    }
    hold_ops(sums_done_);
  }

  void all_gather(std::span<float> data, std::span<const std::int64_t> counts) override {
    gather(data, ncclFloat32, counts);
  }
  void all_gather(std::span<BFloat16> data, std::span<const std::int64_t> counts) override {
    gather(data, ncclBfloat16, counts);
  }

  void all_to_all_rows(const void* sent, const RowBlocks& sent_blocks, void* received,
                       const RowBlocks& received_blocks, std::int64_t row_bytes) override {
    start_all_to_all_rows(0, sent, sent_blocks, received, received_blocks, row_bytes);
    wait_for_rows(0);
  }
  void start_all_to_all_rows(std::int64_t slot, const void* sent, const RowBlocks& sent_blocks,
                             void* received, const RowBlocks& received_blocks,
                             std::int64_t row_bytes) override {
    begin();
    check(ncclGroupStart(), "ncclGroupStart");
    std::int64_t sent_row = 0, received_row = 0;  // of blocks that lie back to back
    for (int peer = 0; peer < size(); ++peer) {
      const auto i = static_cast<std::size_t>(peer);
      const std::int64_t from = first_row(sent_blocks, i, sent_row),
                         to = first_row(received_blocks, i, received_row);
      const auto sent_bytes = static_cast<std::size_t>(sent_blocks.num_rows[i] * row_bytes);
      const auto received_bytes = static_cast<std::size_t>(received_blocks.num_rows[i] * row_bytes);
      if (sent_bytes > 0)
        check(ncclSend(static_cast<const char*>(sent) + from * row_bytes, sent_bytes, ncclInt8,
                       peer, comm_, stream()),
              "ncclSend");
      if (received_bytes > 0)
        check(ncclRecv(static_cast<char*>(received) + to * row_bytes, received_bytes, ncclInt8,
                       peer, comm_, stream()),
              "ncclRecv");
    }
    check(ncclGroupEnd(), "ncclGroupEnd");
    OPENMOE_CUDA(cudaEventRecord(rows_done(slot), stream()));
  }
  void wait_for_rows(std::int64_t slot) override {
    OPENMOE_CUDA(cudaStreamWaitEvent(ops_.stream(), rows_done(slot), 0));
  }

  std::unique_ptr<Communicator> split(int colour, int key) override {
    std::unique_ptr<Communicator> part = host().split(colour, key);
    Communicator& ranks = *part;
    return std::make_unique<NcclCommunicator>(ops_, ranks, std::move(part));
  }

 private:
  static std::int64_t first_row(const RowBlocks& blocks, std::size_t i, std::int64_t& next) {
    const std::int64_t first = blocks.row_offsets.empty() ? next : blocks.row_offsets[i];
    next += blocks.num_rows[i];
    return first;
  }
  static bool are_equal(std::span<const std::int64_t> counts) {
    return std::all_of(counts.begin(), counts.end(), [&](auto n) { return n == counts[0]; });
  }
  static std::int64_t piece_begin(std::span<const std::int64_t> counts, int rank) {
    std::int64_t begin = 0;
    for (int r = 0; r < rank; ++r) begin += counts[static_cast<std::size_t>(r)];
    return begin;
  }

  // In one group: body(piece, elements, its rank) for every piece that is not empty.
  template <typename T, typename Body>
  void for_pieces(std::span<T> data, std::span<const std::int64_t> counts, Body&& body) {
    check(ncclGroupStart(), "ncclGroupStart");
    for (int r = 0; r < size(); ++r) {
      const std::int64_t count = counts[static_cast<std::size_t>(r)];
      if (count > 0) body(data.data() + piece_begin(counts, r), static_cast<std::size_t>(count), r);
    }
    check(ncclGroupEnd(), "ncclGroupEnd");
  }

  template <typename T>
  void gather(std::span<T> data, ncclDataType_t type, std::span<const std::int64_t> counts) {
    if (data.empty()) return;
    begin();
    if (are_equal(counts))
      check(ncclAllGather(data.data() + piece_begin(counts, rank_in_group()), data.data(),
                          static_cast<std::size_t>(counts[0]), type, comm_, stream()),
            "ncclAllGather");
    else
      for_pieces(data, counts, [&](T* piece, std::size_t count, int root) {
        check(ncclBroadcast(piece, piece, count, type, root, comm_, stream()), "ncclBroadcast");
      });
    hold_ops(sums_done_);
  }

  void check(ncclResult_t result, const char* call) const {
    if (result == ncclSuccess) return;
    // NCCL keeps the words for the process, so there are some where no communicator came to be too.
    throw RuntimeFault(concat("NCCL: ", call, " failed on ", description(), ": ",
                              ncclGetErrorString(result), "; ", ncclGetLastError(comm_),
                              ". NCCL_DEBUG=INFO says more; --collectives staged does without "
                              "NCCL"));
  }

  cudaStream_t stream() const { return ops_.transfer_stream(); }
  // The transfer starts when the ops before it are done. Also where the fault of an earlier
  // transfer is noticed.
  void begin() {
    ncclResult_t earlier = ncclSuccess;
    check(ncclCommGetAsyncError(comm_, &earlier), "ncclCommGetAsyncError");
    check(earlier, "an earlier transfer");
    OPENMOE_CUDA(cudaEventRecord(ready_, ops_.stream()));
    OPENMOE_CUDA(cudaStreamWaitEvent(stream(), ready_, 0));
  }
  // Later ops start when all transfers so far are done.
  void hold_ops(cudaEvent_t event) {
    OPENMOE_CUDA(cudaEventRecord(event, stream()));
    OPENMOE_CUDA(cudaStreamWaitEvent(ops_.stream(), event, 0));
  }
  cudaEvent_t rows_done(std::int64_t slot) {
    while (std::ssize(rows_done_) <= slot)
      OPENMOE_CUDA(cudaEventCreateWithFlags(&rows_done_.emplace_back(), cudaEventDisableTiming));
    return rows_done_[static_cast<std::size_t>(slot)];
  }

  CudaOps& ops_;
  ncclComm_t comm_ = nullptr;
  cudaEvent_t ready_ = nullptr, sums_done_ = nullptr;
  std::vector<cudaEvent_t> rows_done_;  // by slot
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Ops& ops, Communicator& group) {
  auto* const cuda_ops = dynamic_cast<CudaOps*>(&ops);
  OPENMOE_CHECK(cuda_ops != nullptr, "an NCCL communicator for ", ops.name());
  return std::make_unique<NcclCommunicator>(*cuda_ops, group);
}

}  // namespace openmoe
