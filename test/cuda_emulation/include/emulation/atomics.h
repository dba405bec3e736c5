// Atomics on global and shared memory. Threads of a grid never run at the same time here, so that a
// plain read and write is atomic; the runtime is told, for its check of uninitialised and unordered
// memory.
#pragma once

#include <type_traits>

namespace cuda_emulation {

void note_atomic(const void* address, int bytes);

template <typename T, typename Update>
T atomic_update(T* address, Update update) {
  note_atomic(address, sizeof(T));
  volatile T* place = address;
  const T old = *place;
  *place = update(old);
  return old;
}

template <typename T>
inline constexpr bool kAtomicInteger = std::is_same_v<T, int> || std::is_same_v<T, unsigned int> ||
                                       std::is_same_v<T, unsigned long long>;

}  // namespace cuda_emulation

template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  static_assert(cuda_emulation::kAtomicInteger<T> || std::is_same_v<T, float> ||
                std::is_same_v<T, double>);
  return cuda_emulation::atomic_update(address,
                                       [value](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicSub(T* address, std::type_identity_t<T> value) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned int>);
  return cuda_emulation::atomic_update(address,
                                       [value](T old) { return static_cast<T>(old - value); });
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  static_assert(cuda_emulation::kAtomicInteger<T> || std::is_same_v<T, long long>);
  return cuda_emulation::atomic_update(address,
                                       [value](T old) { return old > value ? old : value; });
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  static_assert(cuda_emulation::kAtomicInteger<T> || std::is_same_v<T, long long>);
  return cuda_emulation::atomic_update(address,
                                       [value](T old) { return old < value ? old : value; });
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  static_assert(cuda_emulation::kAtomicInteger<T> || std::is_same_v<T, float>);
  return cuda_emulation::atomic_update(address, [value](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  static_assert(cuda_emulation::kAtomicInteger<T> || std::is_same_v<T, unsigned short>);
  return cuda_emulation::atomic_update(address,
                                       [=](T old) { return old == compare ? value : old; });
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  static_assert(cuda_emulation::kAtomicInteger<T>);
  return cuda_emulation::atomic_update(address,
                                       [value](T old) { return static_cast<T>(old | value); });
}
template <typename T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  static_assert(cuda_emulation::kAtomicInteger<T>);
  return cuda_emulation::atomic_update(address,
                                       [value](T old) { return static_cast<T>(old & value); });
}
template <typename T>
T atomicXor(T* address, std::type_identity_t<T> value) {
  static_assert(cuda_emulation::kAtomicInteger<T>);
  return cuda_emulation::atomic_update(address,
                                       [value](T old) { return static_cast<T>(old ^ value); });
}
inline unsigned int atomicInc(unsigned int* address, unsigned int limit) {
  return cuda_emulation::atomic_update(
      address, [limit](unsigned int old) { return old >= limit ? 0u : old + 1u; });
}
