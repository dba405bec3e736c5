// The functions of NCCL that the backend calls, opened at the first call.
#include <nccl.h>

#include "cuda/libraries/loaded_library.h"

namespace {

using openmoe::cuda::LoadedLibrary;

LoadedLibrary& nccl() {
  static LoadedLibrary library(
      "libnccl.so.2",
      "install NCCL, name its folder in LD_LIBRARY_PATH, or use --collectives staged");
  return library;
}

}  // namespace

OPENMOE_FORWARD(nccl, ncclResult_t, ncclAllGather,
                (const void* sendbuff, void* recvbuff, size_t sendcount, ncclDataType_t datatype,
                 ncclComm_t comm, cudaStream_t stream),
                (sendbuff, recvbuff, sendcount, datatype, comm, stream))
OPENMOE_FORWARD(nccl, ncclResult_t, ncclAllReduce,
                (const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype,
                 ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream),
                (sendbuff, recvbuff, count, datatype, op, comm, stream))
OPENMOE_FORWARD(nccl, ncclResult_t, ncclBroadcast,
                (const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype,
                 int root, ncclComm_t comm, cudaStream_t stream),
                (sendbuff, recvbuff, count, datatype, root, comm, stream))
OPENMOE_FORWARD(nccl, ncclResult_t, ncclCommAbort, (ncclComm_t comm), (comm))
OPENMOE_FORWARD(nccl, ncclResult_t, ncclCommDestroy, (ncclComm_t comm), (comm))
OPENMOE_FORWARD(nccl, ncclResult_t, ncclCommGetAsyncError,
                (ncclComm_t comm, ncclResult_t* asyncError), (comm, asyncError))
OPENMOE_FORWARD(nccl, ncclResult_t, ncclCommInitRank,
                (ncclComm_t * comm, int nranks, ncclUniqueId commId, int rank),
                (comm, nranks, commId, rank))
OPENMOE_FORWARD(nccl, const char*, ncclGetErrorString, (ncclResult_t result), (result))
OPENMOE_FORWARD(nccl, const char*, ncclGetLastError, (ncclComm_t comm), (comm))
OPENMOE_FORWARD(nccl, ncclResult_t, ncclGetUniqueId, (ncclUniqueId * uniqueId), (uniqueId))
OPENMOE_FORWARD(nccl, ncclResult_t, ncclGetVersion, (int* version), (version))
OPENMOE_FORWARD(nccl, ncclResult_t, ncclGroupEnd, (), ())
OPENMOE_FORWARD(nccl, ncclResult_t, ncclGroupStart, (), ())
OPENMOE_FORWARD(nccl, ncclResult_t, ncclRecv,
                (void* recvbuff, size_t count, ncclDataType_t datatype, int peer, ncclComm_t comm,
                 cudaStream_t stream),
                (recvbuff, count, datatype, peer, comm, stream))
OPENMOE_FORWARD(nccl, ncclResult_t, ncclReduce,
                (const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype,
                 ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream),
                (sendbuff, recvbuff, count, datatype, op, root, comm, stream))
OPENMOE_FORWARD(nccl, ncclResult_t, ncclReduceScatter,
                (const void* sendbuff, void* recvbuff, size_t recvcount, ncclDataType_t datatype,
                 ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream),
                (sendbuff, recvbuff, recvcount, datatype, op, comm, stream))
OPENMOE_FORWARD(nccl, ncclResult_t, ncclSend,
                (const void* sendbuff, size_t count, ncclDataType_t datatype, int peer,
                 ncclComm_t comm, cudaStream_t stream),
                (sendbuff, count, datatype, peer, comm, stream))
