#include "test/cuda_emulation/runtime/nccl_reduce.h"

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_bf16.h"

namespace cuda_emulation {
namespace {

template <typename T>
T combine(T a, T b, ncclRedOp_t op) {
  using Wide = std::conditional_t<std::is_same_v<T, __nv_bfloat16>, float, T>;
  const auto x = static_cast<Wide>(a), y = static_cast<Wide>(b);
  switch (op) {
    case ncclProd:
      return static_cast<T>(x * y);
    case ncclMax:
      return x < y ? b : a;
    case ncclMin:
      return y < x ? b : a;
    default:
      return static_cast<T>(x + y);
  }
}

template <typename T>
void reduce(void* result, const char* parts, int num_parts, std::size_t stride_bytes, std::size_t n,
            ncclRedOp_t op) {
  T* out = static_cast<T*>(result);
  for (std::size_t i = 0; i < n; ++i) {
    T sum;
    std::memcpy(&sum, parts + i * sizeof(T), sizeof sum);
    for (int part = 1; part < num_parts; ++part) {
      T next;
      std::memcpy(&next, parts + static_cast<std::size_t>(part) * stride_bytes + i * sizeof(T),
                  sizeof next);
      sum = combine(sum, next, op);
    }
    if (op == ncclAvg) {
      if constexpr (std::is_same_v<T, __nv_bfloat16>)
        sum = __nv_bfloat16(static_cast<float>(sum) / static_cast<float>(num_parts));
      else
        sum = static_cast<T>(sum / static_cast<T>(num_parts));
    }
    std::memcpy(out + i, &sum, sizeof sum);
  }
}

}  // namespace

std::size_t nccl_bytes(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
    default:
      return 0;
  }
}

void nccl_reduce(void* result, const void* parts, int num_parts, std::size_t stride_bytes,
                 std::size_t n, ncclDataType_t type, ncclRedOp_t op) {
  const char* first = static_cast<const char*>(parts);
  switch (type) {
    case ncclInt8:
      return reduce<std::int8_t>(result, first, num_parts, stride_bytes, n, op);
    case ncclUint8:
      return reduce<std::uint8_t>(result, first, num_parts, stride_bytes, n, op);
    case ncclInt32:
      return reduce<std::int32_t>(result, first, num_parts, stride_bytes, n, op);
    case ncclUint32:
      return reduce<std::uint32_t>(result, first, num_parts, stride_bytes, n, op);
    case ncclInt64:
      return reduce<std::int64_t>(result, first, num_parts, stride_bytes, n, op);
    case ncclUint64:
      return reduce<std::uint64_t>(result, first, num_parts, stride_bytes, n, op);
    case ncclFloat32:
      return reduce<float>(result, first, num_parts, stride_bytes, n, op);
    case ncclFloat64:
      return reduce<double>(result, first, num_parts, stride_bytes, n, op);
    case ncclBfloat16:
      return reduce<__nv_bfloat16>(result, first, num_parts, stride_bytes, n, op);
    default:
      return;
  }
}

}  // namespace cuda_emulation
