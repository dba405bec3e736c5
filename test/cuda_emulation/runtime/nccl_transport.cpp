#include "test/cuda_emulation/runtime/nccl_transport.h"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "test/cuda_emulation/runtime/violation.h"

namespace cuda_emulation {
namespace {

constexpr int kRendezvousTag = 20000;
constexpr std::size_t kMaxPieceBytes = std::size_t{1} << 30;

int timeout_seconds() {
  const char* value = std::getenv("OPENMOE_EMULATION_TIMEOUT_S");
  return value == nullptr ? 60 : std::atoi(value);
}

// Waits for all requests; ends the program's call when some peer never comes.
void wait_all(std::vector<MPI_Request>& requests, const char* call, const std::string& whom) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(timeout_seconds());
  for (int done = 0; done == 0;) {
    MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
    if (done != 0) return;
    if (std::chrono::steady_clock::now() > deadline)
      violation(text(call, " hangs: after ", timeout_seconds(), " s still waiting for ", whom));
    usleep(20);
  }
}

class MpiTransport final : public Transport {
 public:
  MpiTransport(MPI_Comm comm, int size, int rank) : comm_(comm), size_(size), rank_(rank) {}
  ~MpiTransport() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0) MPI_Comm_free(&comm_);
  }

  void all_gather(const void* sent, void* received, std::size_t bytes, const char* call) override {
    collect(bytes, call, [&](std::size_t at, int piece, MPI_Request* request) {
      // Pieces of every rank lie `bytes` apart.
      MPI_Datatype block = MPI_DATATYPE_NULL, spaced = MPI_DATATYPE_NULL;
      MPI_Type_contiguous(piece, MPI_BYTE, &block);
      MPI_Type_create_resized(block, 0, static_cast<MPI_Aint>(bytes), &spaced);
      MPI_Type_commit(&spaced);
      MPI_Iallgather(static_cast<const char*>(sent) + at, piece, MPI_BYTE,
                     static_cast<char*>(received) + at, 1, spaced, comm_, request);
      MPI_Type_free(&spaced);
      MPI_Type_free(&block);
    });
  }

  void all_to_all(const void* sent, void* received, std::size_t bytes, const char* call) override {
    std::vector<Message> messages;
    std::vector<int> kinds;
    for (int peer = 0; peer < size_; ++peer) {
      const std::size_t at = static_cast<std::size_t>(peer) * bytes;
      messages.push_back({static_cast<char*>(const_cast<void*>(sent)) + at, bytes, peer, true});
      messages.push_back({static_cast<char*>(received) + at, bytes, peer, false});
      kinds.insert(kinds.end(), 2, 0);
    }
    exchange(messages, kinds, call);
  }

  void broadcast(void* data, std::size_t bytes, int root, const char* call) override {
    collect(bytes, call, [&](std::size_t at, int piece, MPI_Request* request) {
      MPI_Ibcast(static_cast<char*>(data) + at, piece, MPI_BYTE, root, comm_, request);
    });
  }

  void exchange(const std::vector<Message>& messages, const std::vector<int>& kinds,
                const char* call) override {
    agree(messages, kinds, call);
    std::vector<MPI_Request> requests;
    for (const Message& m : messages) {
      for (std::size_t at = 0; at < m.bytes; at += kMaxPieceBytes) {
        const int piece = static_cast<int>(std::min(kMaxPieceBytes, m.bytes - at));
        char* data = static_cast<char*>(m.data) + at;
        requests.push_back(MPI_REQUEST_NULL);
        if (m.outgoing)
          MPI_Isend(data, piece, MPI_BYTE, m.peer, kDataTag, comm_, &requests.back());
        else
          MPI_Irecv(data, piece, MPI_BYTE, m.peer, kDataTag, comm_, &requests.back());
      }
    }
    wait_all(requests, call, "the data of its peers");
  }

 private:
  static constexpr int kSizeTag = 1;
  static constexpr int kAnswerTag = 2;
  static constexpr int kDataTag = 3;
  struct Announcement {
    std::uint64_t bytes;
    std::int64_t kind;
  };

  template <typename Start>
  void collect(std::size_t bytes, const char* call, Start start) {
    for (std::size_t at = 0; at < bytes; at += kMaxPieceBytes) {
      std::vector<MPI_Request> request(1, MPI_REQUEST_NULL);
      start(at, static_cast<int>(std::min(kMaxPieceBytes, bytes - at)), request.data());
      wait_all(request, call, "other ranks to call it");
    }
  }

  // Both ends of every message tell each other what they expect.
  void agree(const std::vector<Message>& messages, const std::vector<int>& kinds,
             const char* call) {
    std::vector<Announcement> mine(messages.size()), theirs(messages.size());
    std::vector<MPI_Request> requests;
    std::string peers = "a match from rank";
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const Message& m = messages[i];
      mine[i] = {m.bytes, kinds[i]};
      const int out_tag = m.outgoing ? kSizeTag : kAnswerTag,
                in_tag = m.outgoing ? kAnswerTag : kSizeTag;
      requests.resize(requests.size() + 2, MPI_REQUEST_NULL);
      MPI_Issend(&mine[i], sizeof mine[i], MPI_BYTE, m.peer, out_tag, comm_,
                 &requests[requests.size() - 2]);
      MPI_Irecv(&theirs[i], sizeof theirs[i], MPI_BYTE, m.peer, in_tag, comm_, &requests.back());
      peers += text(" ", m.peer, m.outgoing ? " (to receive)" : " (to send)");
    }
    wait_all(requests, call, peers);
    for (std::size_t i = 0; i < messages.size(); ++i)
      if (mine[i].bytes != theirs[i].bytes || mine[i].kind != theirs[i].kind)
        violation(text(call, ": rank ", rank_, messages[i].outgoing ? " sends " : " receives ",
                       mine[i].bytes, " bytes of type ", mine[i].kind, ", rank ", messages[i].peer,
                       messages[i].outgoing ? " receives " : " sends ", theirs[i].bytes,
                       " bytes of type ", theirs[i].kind));
  }

  MPI_Comm comm_;
  int size_;
  int rank_;
};

// A group of one.
class SelfTransport final : public Transport {
 public:
  void all_gather(const void* sent, void* received, std::size_t bytes, const char*) override {
    if (sent != received) std::memmove(received, sent, bytes);
  }
  void all_to_all(const void* sent, void* received, std::size_t bytes, const char* call) override {
    all_gather(sent, received, bytes, call);
  }
  void broadcast(void*, std::size_t, int, const char*) override {}
  void exchange(const std::vector<Message>& messages, const std::vector<int>& kinds,
                const char* call) override {
    std::vector<std::size_t> out, in;
    for (std::size_t i = 0; i < messages.size(); ++i)
      (messages[i].outgoing ? out : in).push_back(i);
    if (out.size() != in.size())
      violation(text(call, " hangs: ", out.size(), " sends and ", in.size(),
                     " receives between rank 0 and itself"));
    for (std::size_t i = 0; i < out.size(); ++i) {
      const Message &from = messages[out[i]], &to = messages[in[i]];
      if (from.bytes != to.bytes || kinds[out[i]] != kinds[in[i]])
        violation(
            text(call, ": rank 0 sends ", from.bytes, " bytes to itself and receives ", to.bytes));
      std::memmove(to.data, from.data, from.bytes);
    }
  }
};

bool mpi_is_up() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

}  // namespace

int world_rank() {
  int rank = 0;
  if (mpi_is_up()) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

std::string transport_obstacle() {
  if (!mpi_is_up()) return "MPI, over which NCCL is emulated, is not initialised";
  int is_main = 0;
  MPI_Is_thread_main(&is_main);
  return is_main != 0 ? "" : "NCCL is emulated over MPI, which only the main thread may use";
}

std::unique_ptr<Transport> make_transport(int root_world_rank, int ticket, int size, int rank) {
  if (size == 1) return std::make_unique<SelfTransport>();
  const int me = world_rank();
  const int tag = kRendezvousTag + ticket % 4096;
  std::vector<int> members(static_cast<std::size_t>(size), -1);  // world ranks
  members[static_cast<std::size_t>(rank)] = me;
  std::vector<MPI_Request> request(1, MPI_REQUEST_NULL);
  const char* call = "ncclCommInitRank";
  if (me == root_world_rank) {
    for (int i = 1; i < size; ++i) {
      int place[2];
      MPI_Irecv(place, 2, MPI_INT, MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, request.data());
      wait_all(request, call, "other ranks to call it");
      if (place[0] < 0 || place[0] >= size || members[static_cast<std::size_t>(place[0])] != -1)
        violation(text(call, ": two processes are rank ", place[0], " of ", size));
      members[static_cast<std::size_t>(place[0])] = place[1];
    }
    for (int i = 0; i < size; ++i)
      if (i != rank)
        MPI_Send(members.data(), size, MPI_INT, members[static_cast<std::size_t>(i)], tag,
                 MPI_COMM_WORLD);
  } else {
    const int place[2] = {rank, me};
    MPI_Isend(place, 2, MPI_INT, root_world_rank, tag, MPI_COMM_WORLD, request.data());
    wait_all(request, call, "the rank that made the id");
    MPI_Irecv(members.data(), size, MPI_INT, root_world_rank, tag, MPI_COMM_WORLD, request.data());
    wait_all(request, call, "the rank that made the id");
  }
  MPI_Group world = MPI_GROUP_NULL, group = MPI_GROUP_NULL;
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_group(MPI_COMM_WORLD, &world);
  MPI_Group_incl(world, size, members.data(), &group);
  MPI_Comm_create_group(MPI_COMM_WORLD, group, tag, &comm);
  MPI_Group_free(&group);
  MPI_Group_free(&world);
  return std::make_unique<MpiTransport>(comm, size, rank);
}

}  // namespace cuda_emulation
