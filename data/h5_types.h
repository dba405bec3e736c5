// The element types of HDF5 datasets by the names that H5File uses. Identifiers are those of hid_t,
// so that hdf5.h stays out of headers. The caller holds the library's lock.
#pragma once

#include <cstdint>
#include <string>

namespace openmoe {

struct NumberType {
  const char* name;
  std::int64_t (*memory)();
  std::int64_t (*file)();
  std::int64_t bytes;
};

// "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "bf16"; any other is a
// programmer error.
const NumberType& number_type(const std::string& name);
// The name of a type in a file, "f16" (which only converts into others), "string" or "other"; bf16
// is stored as its bits and is "u16" here.
std::string type_name_of(std::int64_t type);

}  // namespace openmoe
