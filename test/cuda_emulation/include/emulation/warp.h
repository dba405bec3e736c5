// Warp shuffles, votes and reductions. Every call waits for the lanes of its mask that have not
// returned; a value taken from a lane that does not take part is undefined on a device and an error
// here.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulation/thread.h"

namespace cuda_emulation {

enum class WarpKind { sync, shuffle, ballot, match, reduce, matrix };

struct WarpValues {
  const std::uint64_t* values;  // by lane, in memory of the runtime
  std::uint32_t present;        // lanes that brought a value
};
// Publishes this lane's value and waits for the others. `bytes` is the size of the value, equal in
// all lanes.
WarpValues warp_exchange(std::uint32_t mask, WarpKind kind, std::uint64_t value, int bytes,
                         Site site);
int lane_index();
// The bits that a lane brought; ends the launch when it brought none.
std::uint64_t value_bits(const WarpValues& all, int lane, Site site);

template <typename T>
std::uint64_t pack_value(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <typename T>
T value_of_lane(const WarpValues& all, int lane, Site site) {
  const std::uint64_t bits = value_bits(all, lane, site);
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <typename T>
T shuffle(std::uint32_t mask, T value, int source, Site site) {
  const WarpValues all =
      warp_exchange(mask, WarpKind::shuffle, pack_value(value), sizeof value, site);
  return value_of_lane<T>(all, source, site);
}
template <typename T, typename Combine>
T reduce(std::uint32_t mask, T value, Combine combine, Site site) {
  const WarpValues all =
      warp_exchange(mask, WarpKind::reduce, pack_value(value), sizeof value, site);
  T result = value;
  for (int lane = 0; lane < 32; ++lane)
    if (lane != lane_index() && (all.present >> lane & 1u) != 0)
      result = combine(result, value_of_lane<T>(all, lane, site));
  return result;
}

}  // namespace cuda_emulation

inline void __syncwarp(unsigned int mask = 0xffffffffu, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  cuda_emulation::warp_exchange(mask, cuda_emulation::WarpKind::sync, 0, 0, {file, line});
}

template <typename T>
T __shfl_sync(unsigned int mask, T value, int source, int width = 32,
              const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const int lane = cuda_emulation::lane_index();
  return cuda_emulation::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)),
                                 {file, line});
}
template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int lane_mask, int width = 32,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const int lane = cuda_emulation::lane_index();
  const int source = lane ^ lane_mask;
  const bool inside = source / width <= lane / width;
  return cuda_emulation::shuffle(mask, value, inside ? source : lane, {file, line});
}
template <typename T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = 32,
                 const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const int lane = cuda_emulation::lane_index();
  const int place = lane & (width - 1);
  const bool inside = static_cast<unsigned int>(place) >= delta;
  return cuda_emulation::shuffle(mask, value, inside ? lane - static_cast<int>(delta) : lane,
                                 {file, line});
}
template <typename T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = 32,
                   const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const int lane = cuda_emulation::lane_index();
  const int place = lane & (width - 1);
  const bool inside = static_cast<unsigned int>(place) + delta < static_cast<unsigned int>(width);
  return cuda_emulation::shuffle(mask, value, inside ? lane + static_cast<int>(delta) : lane,
                                 {file, line});
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate,
                                  const char* file = __builtin_FILE(),
                                  int line = __builtin_LINE()) {
  using namespace cuda_emulation;
  const WarpValues all =
      warp_exchange(mask, WarpKind::ballot, predicate != 0 ? 1u : 0u, 4, {file, line});
  unsigned int ballot = 0;
  for (int lane = 0; lane < 32; ++lane)
    if ((all.present >> lane & 1u) != 0 && value_bits(all, lane, {file, line}) != 0)
      ballot |= 1u << lane;
  return ballot;
}
inline int __any_sync(unsigned int mask, int predicate, const char* file = __builtin_FILE(),
                      int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, file, line) != 0 ? 1 : 0;
}
inline int __all_sync(unsigned int mask, int predicate, const char* file = __builtin_FILE(),
                      int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate == 0 ? 1 : 0, file, line) == 0 ? 1 : 0;
}
template <typename T>
unsigned int __match_any_sync(unsigned int mask, T value, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
  using namespace cuda_emulation;
  const std::uint64_t mine = pack_value(value);
  const WarpValues all = warp_exchange(mask, WarpKind::match, mine, sizeof value, {file, line});
  unsigned int same = 0;
  for (int lane = 0; lane < 32; ++lane)
    if ((all.present >> lane & 1u) != 0 && value_bits(all, lane, {file, line}) == mine)
      same |= 1u << lane;
  return same;
}

// int and unsigned int, as on sm_80 and later.
template <typename T>
T __reduce_add_sync(unsigned int mask, T value, const char* file = __builtin_FILE(),
                    int line = __builtin_LINE()) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  const auto sum = [](T a, T b) {
    return static_cast<T>(static_cast<unsigned int>(a) + static_cast<unsigned int>(b));
  };
  return cuda_emulation::reduce(mask, value, sum, {file, line});
}
template <typename T>
T __reduce_max_sync(unsigned int mask, T value, const char* file = __builtin_FILE(),
                    int line = __builtin_LINE()) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  return cuda_emulation::reduce(mask, value, [](T a, T b) { return a > b ? a : b; }, {file, line});
}
template <typename T>
T __reduce_min_sync(unsigned int mask, T value, const char* file = __builtin_FILE(),
                    int line = __builtin_LINE()) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  return cuda_emulation::reduce(mask, value, [](T a, T b) { return a < b ? a : b; }, {file, line});
}
