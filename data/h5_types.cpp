#include "data/h5_types.h"

#include <hdf5.h>

#include <algorithm>
#include <iterator>

#include "core/base/check.h"

namespace openmoe {
namespace {

constexpr NumberType kNumberTypes[] = {
    {"f32", []() -> std::int64_t { return H5T_NATIVE_FLOAT; },
     []() -> std::int64_t { return H5T_IEEE_F32LE; }, 4},
    {"f64", []() -> std::int64_t { return H5T_NATIVE_DOUBLE; },
     []() -> std::int64_t { return H5T_IEEE_F64LE; }, 8},
    {"i32", []() -> std::int64_t { return H5T_NATIVE_INT32; },
     []() -> std::int64_t { return H5T_STD_I32LE; }, 4},
    {"i64", []() -> std::int64_t { return H5T_NATIVE_INT64; },
     []() -> std::int64_t { return H5T_STD_I64LE; }, 8},
    {"i8", []() -> std::int64_t { return H5T_NATIVE_INT8; },
     []() -> std::int64_t { return H5T_STD_I8LE; }, 1},
    {"i16", []() -> std::int64_t { return H5T_NATIVE_INT16; },
     []() -> std::int64_t { return H5T_STD_I16LE; }, 2},
    {"u8", []() -> std::int64_t { return H5T_NATIVE_UINT8; },
     []() -> std::int64_t { return H5T_STD_U8LE; }, 1},
    {"u16", []() -> std::int64_t { return H5T_NATIVE_UINT16; },
     []() -> std::int64_t { return H5T_STD_U16LE; }, 2},
    {"u32", []() -> std::int64_t { return H5T_NATIVE_UINT32; },
     []() -> std::int64_t { return H5T_STD_U32LE; }, 4},
    {"u64", []() -> std::int64_t { return H5T_NATIVE_UINT64; },
     []() -> std::int64_t { return H5T_STD_U64LE; }, 8},
    {"bf16", []() -> std::int64_t { return H5T_NATIVE_UINT16; },
     []() -> std::int64_t { return H5T_STD_U16LE; }, 2},
};

}  // namespace

const NumberType& number_type(const std::string& name) {
  const auto* found = std::find_if(std::begin(kNumberTypes), std::end(kNumberTypes),
                                   [&](const NumberType& type) { return name == type.name; });
  OPENMOE_CHECK(found != std::end(kNumberTypes), "element type ", name);
  return *found;
}

std::string type_name_of(std::int64_t type) {
  const H5T_class_t kind = H5Tget_class(type);
  const std::size_t bytes = H5Tget_size(type);
  if (kind == H5T_STRING) return "string";
  if (kind == H5T_FLOAT)
    return bytes == 2 ? "f16" : bytes == 4 ? "f32" : bytes == 8 ? "f64" : "other";
  if (kind == H5T_INTEGER) {
    const std::string sign = H5Tget_sign(type) == H5T_SGN_NONE ? "u" : "i";
    std::string name = sign + std::to_string(bytes * 8);
    for (const NumberType& known : kNumberTypes)
      if (name == known.name) return name;
  }
  return "other";
}

}  // namespace openmoe
