// Reports of the compiler's checks inside kernels and the host code around them
// (-fsanitize=alignment,bounds, signed-integer-overflow,shift-exponent,integer-divide-by-zero):
// misaligned wide accesses, indices outside an array with a known size, 32-bit overflow. The
// structures are the compiler's.
#include <cstdint>

#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/scheduler.h"
#include "test/cuda_emulation/runtime/violation.h"

#ifdef CUDA_EMULATION_CHECKS_ACCESSES

namespace cuda_emulation {
namespace {

struct Place {
  const char* file;
  std::uint32_t line;
  std::uint32_t column;
};
struct Type {
  std::uint16_t kind;  // 0: integer
  std::uint16_t info;  // integers: log2 of the bits times two, plus one when signed
  char name[1];
};
struct TypeMismatch {
  Place place;
  const Type* type;
  unsigned char log_alignment;
  unsigned char check_kind;
};
struct OutOfBounds {
  Place place;
  const Type* array_type;
  const Type* index_type;
};
struct Arithmetic {
  Place place;
  const Type* type;
};

std::string name(const Place& place) {
  return text(place.file, ":", place.line);
}

// A value the compiler passes in a word, or behind a pointer when it is wider.
std::int64_t number(const Type& type, std::uintptr_t value) {
  const int bits = 1 << (type.info >> 1);
  if (bits > 64) return *reinterpret_cast<const std::int64_t*>(value);
  const auto wide = static_cast<std::int64_t>(value);
  if (bits == 64 || (type.info & 1) == 0) return wide;
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(wide) << (64 - bits)) >> (64 - bits);
}

void report(const Arithmetic& data, const char* operation, std::uintptr_t a, std::uintptr_t b) {
  const Unwatched unwatched;
  violation(text("overflow of ", data.type->name, " at ", name(data.place), ": ",
                 number(*data.type, a), operation, number(*data.type, b)));
}

}  // namespace
}  // namespace cuda_emulation

using cuda_emulation::Arithmetic;
using cuda_emulation::OutOfBounds;
using cuda_emulation::TypeMismatch;

extern "C" {

void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, std::uintptr_t address) {
  const cuda_emulation::Unwatched unwatched;
  const std::uintptr_t alignment = std::uintptr_t{1} << data->log_alignment;
  cuda_emulation::violation(cuda_emulation::text(
      address == 0 ? "null pointer" : "misaligned access", " to ", data->type->name, " at ",
      cuda_emulation::name(data->place), ": ",
      cuda_emulation::device_memory::describe(reinterpret_cast<void*>(address)),
      " is not aligned to ", alignment, " bytes"));
}
void __ubsan_handle_out_of_bounds(OutOfBounds* data, std::uintptr_t index) {
  const cuda_emulation::Unwatched unwatched;
  cuda_emulation::violation(
      cuda_emulation::text("index ", cuda_emulation::number(*data->index_type, index), " outside ",
                           data->array_type->name, " at ", cuda_emulation::name(data->place)));
}
void __ubsan_handle_add_overflow(Arithmetic* data, std::uintptr_t a, std::uintptr_t b) {
  cuda_emulation::report(*data, " + ", a, b);
}
void __ubsan_handle_sub_overflow(Arithmetic* data, std::uintptr_t a, std::uintptr_t b) {
  cuda_emulation::report(*data, " - ", a, b);
}
void __ubsan_handle_mul_overflow(Arithmetic* data, std::uintptr_t a, std::uintptr_t b) {
  cuda_emulation::report(*data, " * ", a, b);
}
void __ubsan_handle_negate_overflow(Arithmetic* data, std::uintptr_t a) {
  cuda_emulation::report(*data, " negated: ", a, a);
}
void __ubsan_handle_divrem_overflow(Arithmetic* data, std::uintptr_t a, std::uintptr_t b) {
  cuda_emulation::report(*data, " / ", a, b);
}

}  // extern "C"

#endif
