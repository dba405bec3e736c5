// Communicator: one group of ranks and the verbs in use. All calls are collective over the group, blocking, host memory.
// Only the main thread may call (MPI_THREAD_FUNNELED). Failures throw RuntimeFault with the call and the group's coordinates.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace openmoe {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int size() const = 0;
  virtual int rank_in_group() const = 0;

  // In place: every rank ends with the element-wise sum (or maximum) over ranks, the same bits on every rank.
  virtual void all_reduce_sum(std::span<float> data) = 0;
  virtual void all_reduce_sum(std::span<double> data) = 0;
  virtual void all_reduce_sum(std::span<std::int64_t> data) = 0;
  virtual void all_reduce_max(std::span<std::int64_t> data) = 0;
  // Fixed-size exchange of `count` integers per peer: send and received hold size() * count each.
  virtual void all_to_all(std::span<const std::int64_t> send, std::span<std::int64_t> received, int count) = 0;
  // Rows of `row_bytes` bytes each; counts per peer, in peer order, back to back.
  virtual void all_to_all_rows(const void* send, std::span<const std::int64_t> send_rows, void* received,
                               std::span<const std::int64_t> received_rows, std::int64_t row_bytes) = 0;
  // Every rank's bytes in rank order; sizes may differ.
  virtual std::vector<std::string> all_gather(const std::string& bytes) = 0;
  virtual void broadcast(std::string& bytes, int root) = 0;
  virtual void barrier() = 0;
  // Sub-group of the ranks that pass the same colour, ordered by key. Collective.
  virtual std::unique_ptr<Communicator> split(int colour, int key) = 0;
};

// A group of one: every verb is the identity or a copy.
std::unique_ptr<Communicator> make_self_communicator();

}  // namespace openmoe
