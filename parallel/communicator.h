// Communicator: one group of ranks and the verbs in use. All calls are collective over the group,
// blocking, and of host memory, but for tensors of a device (device_communicator.h). Only the main
// thread may call (MPI_THREAD_FUNNELED). Every verb accepts zero sizes. Sizes are in elements and
// 64-bit; an implementation splits what its library cannot take in one piece. Failures throw
// RuntimeFault with the call and the group's coordinates. In place means that the result replaces
// the argument on every rank.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/dtype.h"

namespace openmoe {

// Which rows of a buffer go to (or come from) each rank of a group, in rank order. Blocks do not
// overlap on the receiving side.
struct RowBlocks {
  std::span<const std::int64_t> num_rows;
  std::span<const std::int64_t>
      row_offsets;  // first row of each block in the buffer; empty: back to back
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int size() const = 0;
  virtual int rank_in_group() const = 0;
  // "rank 1 of 2 (world ranks 1, 3)", for messages.
  virtual std::string description() const = 0;
  // What the group is called in reports, a literal; for communicators that report.
  virtual void set_name(const char* name) { static_cast<void>(name); }

  // In place; every rank ends with the element-wise sum (or maximum) over ranks, the same bits on
  // every rank.
  virtual void all_reduce_sum(std::span<float> data) = 0;
  virtual void all_reduce_sum(std::span<double> data) = 0;
  // The same in the background: `data` may be used again after wait_for_sums(), which every rank
  // calls. All ranks start what they start in the same order.
  virtual void start_all_reduce_sum(std::span<float> data) { all_reduce_sum(data); }
  virtual void wait_for_sums() {}
  // Lets the library work for a moment on what was started; not collective.
  virtual void advance() {}
  virtual void all_reduce_sum(std::span<std::int64_t> data) = 0;
  virtual void all_reduce_max(std::span<std::int64_t> data) = 0;
  // In place: `data` is one piece per rank, back to back in rank order, of counts[r] elements each;
  // every rank brings all and ends with its own as the sum over ranks, the others undefined.
  // `counts` is the same on every rank.
  virtual void reduce_scatter_sum(std::span<float> data, std::span<const std::int64_t> counts) = 0;
  // Fixed-size exchange of `count` integers per peer: sent and received hold size() * count each,
  // in rank order.
  virtual void all_to_all(std::span<const std::int64_t> sent, std::span<std::int64_t> received,
                          std::int64_t count) = 0;
  // Variable exchange of rows of `row_bytes` bytes each: block i of `sent_blocks` goes to rank i,
  // and what rank i sent here arrives as block i of `received_blocks`; both sides must know the
  // same number of rows. The total may pass 2^31 bytes, the rows of one rank may not pass 2^31 - 1.
  virtual void all_to_all_rows(const void* sent, const RowBlocks& sent_blocks, void* received,
                               const RowBlocks& received_blocks, std::int64_t row_bytes) = 0;
  // The same in the background: both buffers may be used again after wait_for_rows() of the same
  // slot, which every rank calls. Slots count from 0 and hold one exchange each.
  virtual void start_all_to_all_rows(std::int64_t slot, const void* sent,
                                     const RowBlocks& sent_blocks, void* received,
                                     const RowBlocks& received_blocks, std::int64_t row_bytes) {
    static_cast<void>(slot);
    all_to_all_rows(sent, sent_blocks, received, received_blocks, row_bytes);
  }
  virtual void wait_for_rows(std::int64_t slot) { static_cast<void>(slot); }
  // In place: `data` is one piece per rank, back to back in rank order, of counts[r] elements each;
  // every rank brings its own and ends with all. `counts` is the same on every rank.
  virtual void all_gather(std::span<float> data, std::span<const std::int64_t> counts) = 0;
  virtual void all_gather(std::span<BFloat16> data, std::span<const std::int64_t> counts) = 0;
  // Every rank's bytes in rank order; sizes may differ.
  virtual std::vector<std::string> all_gather(const std::string& bytes) = 0;
  virtual void broadcast(std::string& bytes, int root) = 0;
  virtual void barrier() = 0;
  // Sub-group of the ranks that pass the same colour (>= 0), ordered by key, then by rank.
  // Collective.
  virtual std::unique_ptr<Communicator> split(int colour, int key) = 0;
  // make(this group): another way of the same ranks, as that of a device (device_communicator.h).
  // This must outlive it. A communicator that reports makes one that reports too.
  using MakeTwin = std::function<std::unique_ptr<Communicator>(Communicator& group)>;
  virtual std::unique_ptr<Communicator> twin(const MakeTwin& make) { return make(*this); }
};

// A group of one: every verb is the identity or a copy.
std::unique_ptr<Communicator> make_self_communicator();

}  // namespace openmoe
