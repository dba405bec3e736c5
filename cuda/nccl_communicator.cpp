// DeviceCommunicator over NCCL. The ranks find each other through the group's host communicator.
// Transfers run on a stream of their own; events order them with the ops: nothing waits on the
// host.
#include <nccl.h>

#include <cstring>

#include "core/base/check.h"
#include "core/base/error.h"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/device_ops.h"

namespace openmoe {
namespace {

class NcclCommunicator final : public DeviceCommunicator {
 public:
  NcclCommunicator(CudaOps& ops, Communicator& group) : ops_(ops), group_(group) {
    ncclUniqueId id{};
    std::string bytes;
    if (group_.rank_in_group() == 0) {
      check(ncclGetUniqueId(&id), "ncclGetUniqueId");
      bytes.assign(id.internal, sizeof id.internal);
    }
    group_.broadcast(bytes, 0);
    OPENMOE_CHECK(bytes.size() == sizeof id.internal, bytes.size(), " bytes of an NCCL id");
    std::memcpy(id.internal, bytes.data(), bytes.size());
    check(ncclCommInitRank(&comm_, group_.size(), id, group_.rank_in_group()), "ncclCommInitRank");
    OPENMOE_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    OPENMOE_CUDA(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming));
    OPENMOE_CUDA(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming));
  }
  ~NcclCommunicator() override {
    cudaStreamSynchronize(stream_);
    ncclCommDestroy(comm_);
    cudaEventDestroy(ready_);
    cudaEventDestroy(done_);
    cudaStreamDestroy(stream_);
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  const char* name() const override { return "nccl"; }
  Communicator& group() override { return group_; }

  void all_reduce_sum(Tensor data) override {
    OPENMOE_CHECK(data.dtype == DType::f32, "sum of ", name_of(data.dtype));
    if (data.num_elements() == 0) return;
    begin();
    check(ncclAllReduce(data.data, data.data, static_cast<std::size_t>(data.num_elements()),
                        ncclFloat32, ncclSum, comm_, stream_),
          "ncclAllReduce");
    end();
  }

  void all_to_all_rows(Tensor sent, const RowBlocks& sent_blocks, Tensor received,
                       const RowBlocks& received_blocks) override {
    OPENMOE_CHECK(sent.dtype == received.dtype && sent.size(1) == received.size(1), "rows of ",
                  name_of(sent.dtype), " ", sent.shape.to_string(), " and ",
                  name_of(received.dtype), " ", received.shape.to_string());
    const std::int64_t row_bytes = sent.size(1) * size_of(sent.dtype);
    begin();
    check(ncclGroupStart(), "ncclGroupStart");
    std::int64_t sent_row = 0, received_row = 0;  // of blocks that lie back to back
    for (int peer = 0; peer < group_.size(); ++peer) {
      const auto i = static_cast<std::size_t>(peer);
      const std::int64_t from = first_row(sent_blocks, i, sent_row),
                         to = first_row(received_blocks, i, received_row);
      const auto sent_bytes = static_cast<std::size_t>(sent_blocks.num_rows[i] * row_bytes);
      const auto received_bytes = static_cast<std::size_t>(received_blocks.num_rows[i] * row_bytes);
      if (sent_bytes > 0)
        check(ncclSend(static_cast<char*>(sent.data) + from * row_bytes, sent_bytes, ncclInt8, peer,
                       comm_, stream_),
              "ncclSend");
      if (received_bytes > 0)
        check(ncclRecv(static_cast<char*>(received.data) + to * row_bytes, received_bytes, ncclInt8,
                       peer, comm_, stream_),
              "ncclRecv");
    }
    check(ncclGroupEnd(), "ncclGroupEnd");
    end();
  }

 private:
  static std::int64_t first_row(const RowBlocks& blocks, std::size_t i, std::int64_t& next) {
    const std::int64_t first = blocks.row_offsets.empty() ? next : blocks.row_offsets[i];
    next += blocks.num_rows[i];
    return first;
  }

  void check(ncclResult_t result, const char* call) const {
    if (result == ncclSuccess) return;
    const char* const details = comm_ == nullptr ? "" : ncclGetLastError(comm_);
    throw RuntimeFault(concat(
        "NCCL: ", call, " failed on ", group_.description(), ": ", ncclGetErrorString(result), "; ",
        details, ". NCCL_DEBUG=INFO says more; --collectives staged does without NCCL"));
  }

  // The transfer starts when the ops before it are done. Also where the fault of an earlier
  // transfer is noticed.
  void begin() {
    ncclResult_t earlier = ncclSuccess;
    check(ncclCommGetAsyncError(comm_, &earlier), "ncclCommGetAsyncError");
    check(earlier, "an earlier transfer");
    OPENMOE_CUDA(cudaEventRecord(ready_, ops_.stream()));
    OPENMOE_CUDA(cudaStreamWaitEvent(stream_, ready_, 0));
  }
  // The ops after it start when the transfer is done.
  void end() {
    OPENMOE_CUDA(cudaEventRecord(done_, stream_));
    OPENMOE_CUDA(cudaStreamWaitEvent(ops_.stream(), done_, 0));
  }

  CudaOps& ops_;
  Communicator& group_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t ready_ = nullptr, done_ = nullptr;
};

}  // namespace

std::unique_ptr<DeviceCommunicator> make_nccl_communicator(Ops& ops, Communicator& group) {
  auto* const cuda_ops = dynamic_cast<CudaOps*>(&ops);
  OPENMOE_CHECK(cuda_ops != nullptr, "an NCCL communicator for ", ops.name());
  return std::make_unique<NcclCommunicator>(*cuda_ops, group);
}

}  // namespace openmoe
