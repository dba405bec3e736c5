// H5File: the project's whole use of HDF5. A move-only handle, errors as RuntimeFault with file,
// dataset and the library's own reason, or as UserError where an attribute is not the one number
// that it should be; the library's error printing is off. One process-wide lock
// guards the library (h5_library.h), which may be built without thread safety. hdf5.h is included
// in h5_*.cpp only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/placement.h"
#include "core/tensor.h"

namespace openmoe {

// How a dataset is stored.
struct H5Layout {
  std::int64_t chunk_rows = 0;  // rows of axis 0 per chunk; 0: contiguous
  int deflate = 0;              // gzip level 1 to 9 with byte shuffle; 0: none; needs chunks
};

class H5File {
 public:
  enum class Mode { read, create };  // create truncates

  H5File(const std::string& path, Mode mode);
  ~H5File();
  H5File(H5File&&) noexcept;
  H5File& operator=(H5File&&) noexcept;

  const std::string& path() const;
  // Flushes and closes; throws RuntimeFault when the disk is full (the destructor cannot).
  void close();

  bool exists(const std::string& name) const;
  std::vector<std::string> children(const std::string& group) const;  // names below a group, sorted
  void create_group(const std::string& name);                         // with parents; may exist

  // Datasets. Element types convert between file and memory as HDF5 does (e.g. u16 ids into i32);
  // `dtype` is the memory type.
  struct Info {
    Shape shape;
    // "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "bf16" (u16 with
    // attribute dtype=bf16), "f16" (to read as f32), "string", "other"
    std::string type;
    std::int64_t element_bytes = 0;  // as stored; of a string of variable length its reference
    std::int64_t stored_bytes = 0;   // what the file holds of it, perhaps compressed; 0: nothing
  };
  Info info(const std::string& name) const;
  void read(const std::string& name, Tensor dst) const;  // whole
  void read_rows(const std::string& name, std::int64_t begin,
                 Tensor dst) const;  // rows [begin, begin + dst.size(0))
  // A box of the dataset, its "global" tensor, into its place in dst, the "local" one.
  void read_box(const std::string& name, const Piece& box, Tensor dst) const;
  void write(const std::string& name, Tensor src, const H5Layout& layout = {});  // creates, whole
  // The same for element types that Tensor lacks: `type` is one of Info::type's numbers ("u16",
  // "f64", ...), in memory.
  void read_raw(const std::string& name, const std::string& type, std::int64_t begin,
                std::int64_t rows, void* dst) const;
  void write_raw(const std::string& name, const std::string& type, const Shape& shape,
                 const void* src, const H5Layout& layout = {});
  // Where the elements of a 1-D dataset lie in the file: the byte address of each chunk, or one
  // address when contiguous. Empty when a filter (compression) stands between file and memory, or
  // nothing is stored yet.
  std::vector<std::int64_t> chunk_addresses(const std::string& name) const;
  std::int64_t chunk_rows(const std::string& name) const;  // 0: contiguous
  // Growable 1-D dataset of a number type, for shards written as a stream. layout.chunk_rows must
  // be positive.
  void create_growable(const std::string& name, const std::string& type, const H5Layout& layout);
  void append(const std::string& name, const void* data, std::int64_t count);
  std::vector<std::string> read_strings(
      const std::string& name) const;  // 1-D, variable or fixed length
  void write_strings(const std::string& name, const std::vector<std::string>& values);

  // Attributes; object "" or "/" is the root group.
  bool has_attribute(const std::string& object, const std::string& name) const;
  std::string string_attribute(const std::string& object, const std::string& name) const;
  double double_attribute(const std::string& object, const std::string& name) const;
  std::int64_t int_attribute(const std::string& object, const std::string& name) const;
  void set_attribute(const std::string& object, const std::string& name, const std::string& value);
  void set_attribute(const std::string& object, const std::string& name, double value);
  void set_attribute(const std::string& object, const std::string& name, std::int64_t value);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace openmoe
