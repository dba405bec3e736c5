#include "nccl.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/nccl_reduce.h"
#include "test/cuda_emulation/runtime/nccl_transport.h"
#include "test/cuda_emulation/runtime/streams.h"
#include "test/cuda_emulation/runtime/violation.h"

struct ncclComm {
  int size = 0;
  int rank = 0;
  int device = 0;
  std::unique_ptr<cuda_emulation::Transport> transport;
};

namespace cuda_emulation {
namespace {

enum class Verb : int { all_reduce, reduce, broadcast, reduce_scatter, all_gather, send, receive };

struct Call {
  Verb verb;
  const char* name;
  const char* sent;
  char* received;
  std::size_t count;
  ncclDataType_t type;
  ncclRedOp_t op;
  int peer;  // or root
  ncclComm_t comm;
  cudaStream_t stream;
};

// What all ranks of a collective must agree on.
struct Terms {
  int verb;
  int type;
  int op;
  int root;
  std::uint64_t count;
};

struct Ticket {
  std::uint64_t mark;
  int root_world_rank;
  int number;
};
constexpr std::uint64_t kTicketMark = 0x656d756c6e63636c;

struct State {
  int depth = 0;  // of ncclGroupStart
  std::vector<Call> queued;
  int tickets = 0;
  std::string last_error;
};
State& state() {
  static State* instance = new State;
  return *instance;
}

ncclResult_t refuse_nccl(ncclResult_t result, const std::string& words) {
  state().last_error = words;
  return result;
}

std::size_t bytes_of(const Call& call) {
  return call.count * nccl_bytes(call.type);
}

// `own`: the bytes before this rank's part of the larger buffer.
void forbid_partial_overlap(const Call& call, std::size_t sent_bytes, std::size_t received_bytes,
                            std::size_t own) {
  const bool in_place = call.verb == Verb::all_gather       ? call.sent == call.received + own
                        : call.verb == Verb::reduce_scatter ? call.received == call.sent + own
                                                            : call.sent == call.received;
  if (!in_place && call.sent < call.received + received_bytes &&
      call.received < call.sent + sent_bytes)
    violation(text(call.name, ": the buffers overlap, but not as an operation in place"));
}

void agree(const Call& call) {
  const Terms mine{static_cast<int>(call.verb), call.type, call.op, call.peer, call.count};
  std::vector<Terms> all(static_cast<std::size_t>(call.comm->size));
  call.comm->transport->all_gather(&mine, all.data(), sizeof mine, call.name);
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank].verb != all[0].verb || all[rank].type != all[0].type ||
        all[rank].op != all[0].op || all[rank].root != all[0].root ||
        all[rank].count != all[0].count)
      violation(text("NCCL ranks disagree in a collective: rank 0 has verb ", all[0].verb,
                     ", count ", all[0].count, ", type ", all[0].type, ", op ", all[0].op,
                     ", root ", all[0].root, "; rank ", rank, " has verb ", all[rank].verb,
                     ", count ", all[rank].count, ", type ", all[rank].type, ", op ", all[rank].op,
                     ", root ", all[rank].root, " (this rank, ", call.comm->rank, ", called ",
                     call.name, ")"));
}

char* view(const void* p) {
  return static_cast<char*>(device_memory::host_view(p));
}

void run_reduction(const Call& call, bool keep) {
  const int size = call.comm->size;
  const std::size_t bytes = bytes_of(call);
  std::vector<char> parts(bytes * static_cast<std::size_t>(size));
  call.comm->transport->all_gather(view(call.sent), parts.data(), bytes, call.name);
  if (!keep) return;
  std::vector<char> result(bytes);
  nccl_reduce(result.data(), parts.data(), size, bytes, call.count, call.type, call.op);
  std::memcpy(view(call.received), result.data(), bytes);
}

void run_collective(const Call& call) {
  ncclComm& comm = *call.comm;
  const std::size_t bytes = bytes_of(call);
  const auto size = static_cast<std::size_t>(comm.size);
  const std::size_t own = static_cast<std::size_t>(comm.rank) * bytes;
  agree(call);
  CUstream_st& stream = stream_of(call.stream, call.name);
  Operation operation(stream, call.name);
  const std::size_t sent_bytes = call.verb == Verb::reduce_scatter ? bytes * size : bytes;
  const std::size_t received_bytes = call.verb == Verb::all_gather ? bytes * size : bytes;
  const bool sends = call.verb != Verb::broadcast || comm.rank == call.peer;
  const bool receives = call.verb != Verb::reduce || comm.rank == call.peer;
  if (bytes == 0) return;
  if (sends) device_memory::read_range(call.sent, sent_bytes, stream.device, call.name);
  if (sends && receives) forbid_partial_overlap(call, sent_bytes, received_bytes, own);
  if (receives) device_memory::write_range(call.received, received_bytes, stream.device, call.name);
  switch (call.verb) {
    case Verb::all_reduce:
    case Verb::reduce:
      run_reduction(call, receives);
      break;
    case Verb::broadcast: {
      std::vector<char> data(bytes);
      if (sends) std::memcpy(data.data(), view(call.sent), bytes);
      comm.transport->broadcast(data.data(), bytes, call.peer, call.name);
      std::memcpy(view(call.received), data.data(), bytes);
      break;
    }
    case Verb::all_gather: {
      std::vector<char> all(bytes * size);
      comm.transport->all_gather(view(call.sent), all.data(), bytes, call.name);
      std::memcpy(view(call.received), all.data(), all.size());
      break;
    }
    default: {
      std::vector<char> parts(bytes * size);
      comm.transport->all_to_all(view(call.sent), parts.data(), bytes, call.name);
      nccl_reduce(view(call.received), parts.data(), comm.size, bytes, call.count, call.type,
                  call.op);
    }
  }
}

// Sends and receives of one group on one communicator, all in flight together.
void run_messages(const std::vector<Call>& calls) {
  std::vector<Message> messages;
  std::vector<int> kinds;
  for (const Call& call : calls) {
    CUstream_st& stream = stream_of(call.stream, call.name);
    Operation operation(stream, call.name);
    const bool outgoing = call.verb == Verb::send;
    const std::size_t bytes = bytes_of(call);
    const void* p = outgoing ? static_cast<const void*>(call.sent) : call.received;
    if (outgoing)
      device_memory::read_range(p, bytes, stream.device, call.name);
    else
      device_memory::write_range(p, bytes, stream.device, call.name);
    messages.push_back({bytes == 0 ? nullptr : view(p), bytes, call.peer, outgoing});
    kinds.push_back(call.type);
  }
  calls.front().comm->transport->exchange(messages, kinds, "ncclSend and ncclRecv");
}

bool is_message(const Call& call) {
  return call.verb == Verb::send || call.verb == Verb::receive;
}

void run_all(const std::vector<Call>& calls) {
  std::vector<ncclComm_t> comms;
  for (const Call& call : calls) {
    if (!is_message(call)) {
      run_collective(call);
    } else if (std::find(comms.begin(), comms.end(), call.comm) == comms.end()) {
      comms.push_back(call.comm);
    }
  }
  for (ncclComm_t comm : comms) {
    std::vector<Call> messages;
    for (const Call& call : calls)
      if (is_message(call) && call.comm == comm) messages.push_back(call);
    run_messages(messages);
  }
}

ncclResult_t submit(const Call& call) {
  const std::lock_guard lock(api_mutex());
  if (call.comm == nullptr)
    return refuse_nccl(ncclInvalidArgument, text(call.name, ": no communicator"));
  if (nccl_bytes(call.type) == 0)
    return refuse_nccl(ncclInvalidArgument,
                       text(call.name, ": type ", static_cast<int>(call.type)));
  if (call.op < ncclSum || call.op > ncclAvg)
    return refuse_nccl(ncclInvalidArgument,
                       text(call.name, ": reduction ", static_cast<int>(call.op)));
  if (call.peer < 0 || call.peer >= call.comm->size)
    return refuse_nccl(ncclInvalidArgument,
                       text(call.name, ": rank ", call.peer, " of ", call.comm->size));
  CUstream_st& stream = stream_of(call.stream, call.name);
  if (stream.device != call.comm->device)
    violation(text(call.name, ": a stream of device ", stream.device,
                   " with a communicator of device ", call.comm->device));
  const char* const fault = std::getenv("OPENMOE_EMULATION_NCCL_FAULT");
  if (fault != nullptr && std::string_view(call.name) == fault)
    return refuse_nccl(ncclSystemError, text(call.name, " fails as the environment says"));
  if (call.comm->size > 1)
    if (const std::string obstacle = transport_obstacle(); !obstacle.empty())
      return refuse_nccl(ncclSystemError, obstacle);
  if (state().depth > 0)
    state().queued.push_back(call);
  else
    run_all({call});
  return ncclSuccess;
}

// NCCL refuses two ranks on one device.
ncclResult_t forbid_shared_devices(ncclComm& comm) {
  struct Place {
    char host[64];
    int device;
  };
  Place mine{};
  gethostname(mine.host, sizeof mine.host - 1);
  mine.device = comm.device;
  std::vector<Place> all(static_cast<std::size_t>(comm.size));
  comm.transport->all_gather(&mine, all.data(), sizeof mine, "ncclCommInitRank");
  for (std::size_t a = 0; a < all.size(); ++a)
    for (std::size_t b = a + 1; b < all.size(); ++b)
      if (all[a].device == all[b].device && std::strcmp(all[a].host, all[b].host) == 0)
        return refuse_nccl(ncclInvalidUsage, text("ranks ", a, " and ", b, " are both on device ",
                                                  all[a].device, " of ", all[a].host));
  return ncclSuccess;
}

}  // namespace
}  // namespace cuda_emulation

using namespace cuda_emulation;

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const Ticket ticket{kTicketMark, world_rank(), state().tickets++};
  std::memset(id->internal, 0, sizeof id->internal);
  std::memcpy(id->internal, &ticket, sizeof ticket);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int nranks, ncclUniqueId id, int rank) {
  const std::lock_guard lock(api_mutex());
  *comm = nullptr;
  Ticket ticket{};
  std::memcpy(&ticket, id.internal, sizeof ticket);
  if (ticket.mark != kTicketMark)
    return refuse_nccl(ncclInvalidArgument, "ncclCommInitRank: not an id of ncclGetUniqueId");
  if (nranks < 1 || rank < 0 || rank >= nranks)
    return refuse_nccl(ncclInvalidArgument, text("ncclCommInitRank: rank ", rank, " of ", nranks));
  if (nranks > 1)
    if (const std::string obstacle = transport_obstacle(); !obstacle.empty())
      return refuse_nccl(ncclSystemError, obstacle);
  auto made = std::make_unique<ncclComm>();
  made->size = nranks;
  made->rank = rank;
  made->device = current_device();
  made->transport = make_transport(ticket.root_world_rank, ticket.number, nranks, rank);
  if (const ncclResult_t result = forbid_shared_devices(*made); result != ncclSuccess)
    return result;
  *comm = made.release();
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t) {
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  const std::lock_guard lock(api_mutex());
  // NCCL's documentation: collective over the ranks of a host. The emulation's are on one.
  if (comm != nullptr && comm->size > 1) {
    std::vector<char> all(static_cast<std::size_t>(comm->size));
    comm->transport->all_gather("", all.data(), 1, "ncclCommDestroy");
  }
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  return ncclCommDestroy(comm);
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
  *error = ncclSuccess;
  return ncclSuccess;
}
ncclResult_t ncclCommCount(ncclComm_t comm, int* count) {
  *count = comm->size;
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(ncclComm_t comm, int* rank) {
  *rank = comm->rank;
  return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(ncclComm_t comm, int* device) {
  *device = comm->device;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
  }
  return "unknown result code";
}
const char* ncclGetLastError(ncclComm_t) {
  return state().last_error.c_str();
}

ncclResult_t ncclAllReduce(const void* sendbuff, void* recvbuff, std::size_t count,
                           ncclDataType_t datatype, ncclRedOp_t op, ncclComm_t comm,
                           cudaStream_t stream) {
  return submit({Verb::all_reduce, "ncclAllReduce", static_cast<const char*>(sendbuff),
                 static_cast<char*>(recvbuff), count, datatype, op, 0, comm, stream});
}
ncclResult_t ncclReduce(const void* sendbuff, void* recvbuff, std::size_t count,
                        ncclDataType_t datatype, ncclRedOp_t op, int root, ncclComm_t comm,
                        cudaStream_t stream) {
  return submit({Verb::reduce, "ncclReduce", static_cast<const char*>(sendbuff),
                 static_cast<char*>(recvbuff), count, datatype, op, root, comm, stream});
}
ncclResult_t ncclBroadcast(const void* sendbuff, void* recvbuff, std::size_t count,
                           ncclDataType_t datatype, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  return submit({Verb::broadcast, "ncclBroadcast", static_cast<const char*>(sendbuff),
                 static_cast<char*>(recvbuff), count, datatype, ncclSum, root, comm, stream});
}
ncclResult_t ncclReduceScatter(const void* sendbuff, void* recvbuff, std::size_t recvcount,
                               ncclDataType_t datatype, ncclRedOp_t op, ncclComm_t comm,
                               cudaStream_t stream) {
  return submit({Verb::reduce_scatter, "ncclReduceScatter", static_cast<const char*>(sendbuff),
                 static_cast<char*>(recvbuff), recvcount, datatype, op, 0, comm, stream});
}
ncclResult_t ncclAllGather(const void* sendbuff, void* recvbuff, std::size_t sendcount,
                           ncclDataType_t datatype, ncclComm_t comm, cudaStream_t stream) {
  return submit({Verb::all_gather, "ncclAllGather", static_cast<const char*>(sendbuff),
                 static_cast<char*>(recvbuff), sendcount, datatype, ncclSum, 0, comm, stream});
}
ncclResult_t ncclSend(const void* sendbuff, std::size_t count, ncclDataType_t datatype, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return submit({Verb::send, "ncclSend", static_cast<const char*>(sendbuff), nullptr, count,
                 datatype, ncclSum, peer, comm, stream});
}
ncclResult_t ncclRecv(void* recvbuff, std::size_t count, ncclDataType_t datatype, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return submit({Verb::receive, "ncclRecv", nullptr, static_cast<char*>(recvbuff), count, datatype,
                 ncclSum, peer, comm, stream});
}

ncclResult_t ncclGroupStart() {
  const std::lock_guard lock(api_mutex());
  ++state().depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  const std::lock_guard lock(api_mutex());
  if (state().depth == 0)
    return refuse_nccl(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  if (--state().depth > 0) return ncclSuccess;
  const std::vector<Call> calls = std::exchange(state().queued, {});
  run_all(calls);
  return ncclSuccess;
}
