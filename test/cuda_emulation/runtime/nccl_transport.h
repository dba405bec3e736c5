// What the NCCL emulation needs of MPI: groups of processes, and collectives and messages that give
// up after a while instead of hanging. mpi.h stays behind this header.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace cuda_emulation {

// Byte blocks to and from other ranks of a group.
struct Message {
  void* data = nullptr;
  std::size_t bytes = 0;
  int peer = 0;
  bool outgoing = false;
};

class Transport {
 public:
  virtual ~Transport() = default;
  // Every rank's `bytes` bytes in rank order.
  virtual void all_gather(const void* sent, void* received, std::size_t bytes,
                          const char* call) = 0;
  // Block i of `sent` to rank i, what rank i sent here as block i of `received`.
  virtual void all_to_all(const void* sent, void* received, std::size_t bytes,
                          const char* call) = 0;
  virtual void broadcast(void* data, std::size_t bytes, int root, const char* call) = 0;
  // All at once. Messages between two ranks meet in order; both ends must name the same size and
  // `kind`.
  virtual void exchange(const std::vector<Message>& messages, const std::vector<int>& kinds,
                        const char* call) = 0;
};

// This process's rank among all, or 0 without MPI.
int world_rank();
// Empty when MPI can be used from this thread, else why not.
std::string transport_obstacle();
// The group of the processes that call this with the same root and ticket; `rank` of `size` is this
// one's place. The root process must be one of them.
std::unique_ptr<Transport> make_transport(int root_world_rank, int ticket, int size, int rank);

}  // namespace cuda_emulation
