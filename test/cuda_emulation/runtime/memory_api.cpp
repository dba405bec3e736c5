// Allocation and copies.
#include <cstring>
#include <mutex>

#include "cuda_runtime_api.h"
#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/host_memory.h"
#include "test/cuda_emulation/runtime/streams.h"
#include "test/cuda_emulation/runtime/violation.h"

using namespace cuda_emulation;

namespace {

cudaError_t allocate(void** pointer, std::size_t bytes) {
  if (pointer == nullptr)
    return fail(cudaErrorInvalidValue, "cudaMalloc: no place for the pointer");
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  const int device = current_device();
  void* p = device_memory::allocate(bytes, device);
  if (p == nullptr)
    return fail(cudaErrorMemoryAllocation,
                text(bytes, " bytes asked, ", device_memory::used_bytes(device), " of ",
                     hardware().memory_bytes, " bytes in use on device ", device));
  *pointer = p;
  return cudaSuccess;
}

const Allocation& live_start(const void* pointer, const char* call) {
  if (!device_memory::contains(pointer)) violation(text(call, " of ", pointer, ", a host pointer"));
  const Allocation* a = device_memory::starting_at(pointer);
  if (a == nullptr)
    violation(
        text(call, " of ", device_memory::describe(pointer), ", not the start of an allocation"));
  if (!a->live) violation(text(call, ": allocation ", a->number, " freed twice"));
  return *a;
}

struct Rows {
  std::size_t dst_pitch;
  std::size_t src_pitch;
  std::size_t width;
  std::size_t height;
};

const char* copy_name(cudaMemcpyKind kind) {
  switch (kind) {
    case cudaMemcpyHostToDevice:
      return "copy from host to device";
    case cudaMemcpyDeviceToHost:
      return "copy from device to host";
    case cudaMemcpyDeviceToDevice:
      return "copy on the device";
    default:
      return "copy";
  }
}

cudaMemcpyKind kind_of(const void* dst, const void* src) {
  const bool to = device_memory::contains(dst);
  const bool from = device_memory::contains(src);
  return to ? (from ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
            : (from ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost);
}

void require_host(const void* p, const char* what, cudaMemcpyKind kind) {
  if (p == nullptr) violation(text(copy_name(kind), ": ", what, " is a null pointer"));
  if (device_memory::contains(p))
    violation(text(copy_name(kind), ": ", what, " is ", device_memory::describe(p),
                   ", a device pointer where a host pointer belongs"));
}

void copy_row(char* dst, const char* src, std::size_t bytes, cudaMemcpyKind kind, bool wait,
              Operation& operation) {
  const int device = operation.stream().device;
  const char* name = copy_name(kind);
  if (kind == cudaMemcpyHostToDevice) {
    require_host(src, "the source", kind);
    device_memory::write_range(dst, bytes, device, name);
    if (host_memory::is_pinned(src, bytes)) {
      host_memory::settle_for_running(src, bytes);
      if (!wait) host_memory::keep_unchanged(src, bytes, operation);
    }
    std::memcpy(device_memory::host_view(dst), src, bytes);
  } else if (kind == cudaMemcpyDeviceToHost) {
    require_host(dst, "the destination", kind);
    device_memory::read_range(src, bytes, device, name);
    const void* view = device_memory::host_view(src);
    if (!wait && host_memory::is_pinned(dst, bytes))
      host_memory::deliver_later(dst, view, bytes, operation);
    else
      std::memcpy(dst, view, bytes);
  } else if (kind == cudaMemcpyDeviceToDevice) {
    device_memory::read_range(src, bytes, device, name, true);
    device_memory::write_range(dst, bytes, device, name);
    std::memmove(device_memory::host_view(dst), device_memory::host_view(src), bytes);
    device_memory::copy_range(dst, src, bytes);
  } else {
    require_host(src, "the source", kind);
    require_host(dst, "the destination", kind);
    std::memmove(dst, src, bytes);
  }
}

// `wait`: the call returns when the copy is done.
cudaError_t copy(void* dst, const void* src, const Rows& rows, cudaMemcpyKind kind,
                 cudaStream_t handle, bool wait) {
  const std::lock_guard lock(api_mutex());
  if (rows.width == 0 || rows.height == 0) return cudaSuccess;
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault)
    return fail(cudaErrorInvalidMemcpyDirection, text("kind ", static_cast<int>(kind)));
  if (rows.height > 1 && (rows.width > rows.dst_pitch || rows.width > rows.src_pitch))
    return fail(cudaErrorInvalidValue, text("rows of ", rows.width, " bytes at a pitch of ",
                                            rows.dst_pitch, " and ", rows.src_pitch));
  if (kind == cudaMemcpyDefault) kind = kind_of(dst, src);
  CUstream_st& stream = stream_of(handle, "cudaMemcpy");
  {
    Operation operation(stream, copy_name(kind));
    if (kind == cudaMemcpyDeviceToDevice && rows.height == 1 && dst != src) {
      const auto to = reinterpret_cast<std::uintptr_t>(dst);
      const auto from = reinterpret_cast<std::uintptr_t>(src);
      if (to < from + rows.width && from < to + rows.width)
        violation(text("copy on the device between overlapping ranges of ", rows.width, " bytes, ",
                       device_memory::describe(src)));
    }
    for (std::size_t y = 0; y < rows.height; ++y)
      copy_row(static_cast<char*>(dst) + y * rows.dst_pitch,
               static_cast<const char*>(src) + y * rows.src_pitch, rows.width, kind, wait,
               operation);
  }
  if (wait && kind != cudaMemcpyDeviceToDevice) host_waits_for(stream.clock);
  return cudaSuccess;
}

cudaError_t fill(void* pointer, int value, std::size_t pitch, std::size_t width, std::size_t height,
                 cudaStream_t handle) {
  const std::lock_guard lock(api_mutex());
  if (width == 0 || height == 0) return cudaSuccess;
  if (height > 1 && width > pitch)
    return fail(cudaErrorInvalidValue, text("rows of ", width, " bytes at a pitch of ", pitch));
  CUstream_st& stream = stream_of(handle, "cudaMemset");
  Operation operation(stream, "fill");
  for (std::size_t y = 0; y < height; ++y) {
    char* row = static_cast<char*>(pointer) + y * pitch;
    device_memory::write_range(row, width, stream.device, "cudaMemset");
    std::memset(device_memory::host_view(row), value, width);
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  const std::lock_guard lock(api_mutex());
  return allocate(pointer, bytes);
}

cudaError_t cudaFree(void* pointer) {
  const std::lock_guard lock(api_mutex());
  if (pointer == nullptr) return cudaSuccess;
  const Allocation& a = live_start(pointer, "cudaFree");
  host_waits_for_device(a.device);
  device_memory::release(a);
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** pointer, std::size_t bytes, cudaStream_t handle) {
  const std::lock_guard lock(api_mutex());
  CUstream_st& stream = stream_of(handle, "cudaMallocAsync");
  Operation operation(stream, "cudaMallocAsync");
  return allocate(pointer, bytes);
}

cudaError_t cudaFreeAsync(void* pointer, cudaStream_t handle) {
  const std::lock_guard lock(api_mutex());
  if (pointer == nullptr) return cudaSuccess;
  const Allocation& a = live_start(pointer, "cudaFreeAsync");
  CUstream_st& stream = stream_of(handle, "cudaFreeAsync");
  Operation operation(stream, "cudaFreeAsync");
  device_memory::write_range(pointer, a.bytes, stream.device, "cudaFreeAsync");
  device_memory::release(a);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
  const std::lock_guard lock(api_mutex());
  *pointer = bytes == 0 ? nullptr : host_memory::allocate_pinned(bytes);
  return bytes != 0 && *pointer == nullptr
             ? fail(cudaErrorMemoryAllocation, text(bytes, " bytes of host memory"))
             : cudaSuccess;
}
cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned int) {
  return cudaMallocHost(pointer, bytes);
}
cudaError_t cudaFreeHost(void* pointer) {
  const std::lock_guard lock(api_mutex());
  if (pointer == nullptr || host_memory::free_pinned(pointer)) return cudaSuccess;
  violation(text("cudaFreeHost of ", pointer, ", which cudaMallocHost did not give"));
}
cudaError_t cudaHostRegister(void* pointer, std::size_t bytes, unsigned int) {
  const std::lock_guard lock(api_mutex());
  require_host(pointer, "the memory to register", cudaMemcpyDefault);
  return host_memory::register_pinned(pointer, bytes)
             ? cudaSuccess
             : fail(cudaErrorInvalidValue, "already registered, or empty");
}
cudaError_t cudaHostUnregister(void* pointer) {
  const std::lock_guard lock(api_mutex());
  return host_memory::unregister_pinned(pointer) ? cudaSuccess
                                                 : fail(cudaErrorInvalidValue, "not registered");
}
cudaError_t cudaHostGetDevicePointer(void** device_pointer, void* pointer, unsigned int) {
  const std::lock_guard lock(api_mutex());
  if (!host_memory::is_pinned(pointer, 1)) return fail(cudaErrorInvalidValue, "not pinned memory");
  *device_pointer = pointer;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  const std::lock_guard lock(api_mutex());
  *total_bytes = hardware().memory_bytes;
  *free_bytes = *total_bytes - device_memory::used_bytes(current_device());
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const std::lock_guard lock(api_mutex());
  *attributes =
      cudaPointerAttributes{cudaMemoryTypeUnregistered, -2, nullptr, const_cast<void*>(pointer)};
  const Allocation* a = device_memory::around(pointer);
  if (a != nullptr && a->live)
    *attributes = {cudaMemoryTypeDevice, a->device, const_cast<void*>(pointer), nullptr};
  else if (host_memory::is_pinned(pointer, 1))
    *attributes = {cudaMemoryTypeHost, current_device(), const_cast<void*>(pointer),
                   const_cast<void*>(pointer)};
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* dst, const void* src, std::size_t bytes, cudaMemcpyKind kind) {
  return copy(dst, src, {bytes, bytes, bytes, 1}, kind, nullptr, true);
}
cudaError_t cudaMemcpyAsync(void* dst, const void* src, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return copy(dst, src, {bytes, bytes, bytes, 1}, kind, stream, false);
}
cudaError_t cudaMemcpy2D(void* dst, std::size_t dst_pitch, const void* src, std::size_t src_pitch,
                         std::size_t width, std::size_t height, cudaMemcpyKind kind) {
  return copy(dst, src, {dst_pitch, src_pitch, width, height}, kind, nullptr, true);
}
cudaError_t cudaMemcpy2DAsync(void* dst, std::size_t dst_pitch, const void* src,
                              std::size_t src_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  return copy(dst, src, {dst_pitch, src_pitch, width, height}, kind, stream, false);
}
cudaError_t cudaMemset(void* pointer, int value, std::size_t bytes) {
  return fill(pointer, value, bytes, bytes, 1, nullptr);
}
cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t bytes, cudaStream_t stream) {
  return fill(pointer, value, bytes, bytes, 1, stream);
}
cudaError_t cudaMemset2D(void* pointer, std::size_t pitch, int value, std::size_t width,
                         std::size_t height) {
  return fill(pointer, value, pitch, width, height, nullptr);
}
cudaError_t cudaMemset2DAsync(void* pointer, std::size_t pitch, int value, std::size_t width,
                              std::size_t height, cudaStream_t stream) {
  return fill(pointer, value, pitch, width, height, stream);
}
