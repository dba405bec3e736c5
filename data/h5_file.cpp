#include "data/h5_file.h"

#include <hdf5.h>

#include <algorithm>
#include <cstring>

#include "core/base/error.h"
#include "data/h5_handle.h"
#include "data/h5_library.h"
#include "data/h5_types.h"

namespace openmoe {
namespace {

using Handle = H5Handle;

}  // namespace

struct H5File::Impl {
  std::string path;
  Handle file;

  // `id` is a result of `call`; negative means failure.
  template <typename Result>
  Result check(Result id, const char* call, const std::string& object = "") const {
    return h5_check(id, call, path, object);
  }
  Handle open_dataset(const std::string& name) const {
    return {check(H5Dopen2(file.get(), name.c_str(), H5P_DEFAULT), "H5Dopen2", name), H5Dclose};
  }
  Handle open_object(const std::string& name) const {
    const char* target = name.empty() ? "/" : name.c_str();
    return {check(H5Oopen(file.get(), target, H5P_DEFAULT), "H5Oopen", name), H5Oclose};
  }
  Handle space_of(const Handle& dataset, const std::string& name) const {
    return {check(H5Dget_space(dataset.get()), "H5Dget_space", name), H5Sclose};
  }
  Handle open_attribute(const Handle& object, const std::string& object_name,
                        const std::string& name) const {
    return {check(H5Aopen(object.get(), name.c_str(), H5P_DEFAULT), "H5Aopen",
                  object_name + "@" + name),
            H5Aclose};
  }
  bool is_bf16(const Handle& dataset) const {
    return H5Aexists(dataset.get(), "dtype") > 0 &&
           read_string_attribute(dataset, "", "dtype") == "bf16";
  }
  std::string read_string_attribute(const Handle& object, const std::string& object_name,
                                    const std::string& name) const;
  template <typename Number>  // double or std::int64_t
  Number read_number_attribute(const std::string& object, const std::string& name) const;
  Shape shape_of(const Handle& dataset, const std::string& name) const;
  Handle text_type() const {
    Handle type{check(H5Tcopy(H5T_C_S1), "H5Tcopy"), H5Tclose};
    check(H5Tset_size(type.get(), H5T_VARIABLE), "H5Tset_size");
    check(H5Tset_cset(type.get(), H5T_CSET_UTF8), "H5Tset_cset");
    return type;
  }
  // Groups on the way to a new object are made.
  Handle link_list() const {
    Handle list{check(H5Pcreate(H5P_LINK_CREATE), "H5Pcreate"), H5Pclose};
    check(H5Pset_create_intermediate_group(list.get(), 1), "H5Pset_create_intermediate_group");
    return list;
  }
  Handle creation_list() const;
  Handle creation_list(const Shape& shape, const H5Layout& layout) const;
  Handle create_dataset(const std::string& name, hid_t type, const Handle& space,
                        const Handle& creation) const;
  Handle open_numbers(const std::string& name) const;
  // A box of the dataset into its place in memory of this shape.
  void read_selection(const Handle& dataset, const std::string& name, const std::string& type,
                      const Piece& box, const Shape& memory, void* dst) const;
  // Rows [begin, begin + rows) of an uncompressed dataset of this shape.
  void write_rows(const std::string& name, const std::string& type, const Shape& shape,
                  std::int64_t begin, std::int64_t rows, const void* src) const;
  template <typename Value>
  void write_attribute(const std::string& object_name, const std::string& name, hid_t file_type,
                       hid_t memory_type, const Value* value) const;
};

// One number: an attribute of another shape would be read beyond `value`.
template <typename Number>
Number H5File::Impl::read_number_attribute(const std::string& object,
                                           const std::string& name) const {
  constexpr bool kWhole = std::is_integral_v<Number>;
  const Handle attribute = open_attribute(open_object(object), object, name);
  const Handle space{check(H5Aget_space(attribute.get()), "H5Aget_space", name), H5Sclose};
  const Handle type{check(H5Aget_type(attribute.get()), "H5Aget_type", name), H5Tclose};
  const H5T_class_t kind = H5Tget_class(type.get());
  const bool fits = kind == H5T_INTEGER || (!kWhole && kind == H5T_FLOAT);
  if (H5Sget_simple_extent_npoints(space.get()) != 1 || !fits)
    throw UserError(concat(path, ": attribute ", object, "@", name, " must be one ",
                           kWhole ? "whole number" : "number"));
  Number value{};
  check(H5Aread(attribute.get(), kWhole ? H5T_NATIVE_INT64 : H5T_NATIVE_DOUBLE, &value), "H5Aread",
        object + "@" + name);
  return value;
}

std::string H5File::Impl::read_string_attribute(const Handle& object,
                                                const std::string& object_name,
                                                const std::string& name) const {
  const Handle attribute = open_attribute(object, object_name, name);
  const Handle type{check(H5Aget_type(attribute.get()), "H5Aget_type", name), H5Tclose};
  if (H5Tget_class(type.get()) != H5T_STRING)
    h5_fault("H5Aread", path, object_name + "@" + name, "the attribute is not a string");
  const Handle space{check(H5Aget_space(attribute.get()), "H5Aget_space", name), H5Sclose};
  if (H5Sget_simple_extent_npoints(space.get()) != 1)
    h5_fault("H5Aread", path, object_name + "@" + name, "the attribute is not one string");
  if (H5Tis_variable_str(type.get()) > 0) {
    char* text = nullptr;
    check(H5Aread(attribute.get(), type.get(), &text), "H5Aread", name);
    std::string value = text == nullptr ? "" : text;
    H5free_memory(text);
    return value;
  }
  std::string value(H5Tget_size(type.get()), '\0');
  check(H5Aread(attribute.get(), type.get(), value.data()), "H5Aread", name);
  return value.substr(0, value.find('\0'));
}

Shape H5File::Impl::shape_of(const Handle& dataset, const std::string& name) const {
  const Handle space = space_of(dataset, name);
  const int rank =
      check(H5Sget_simple_extent_ndims(space.get()), "H5Sget_simple_extent_ndims", name);
  if (rank > Shape::kMaxRank)
    h5_fault("H5Sget_simple_extent_ndims", path, name, concat("rank ", rank, " exceeds 4"));
  hsize_t dims[Shape::kMaxRank] = {};
  H5Sget_simple_extent_dims(space.get(), dims, nullptr);
  Shape shape;
  for (int axis = 0; axis < rank; ++axis)
    shape.sizes[shape.rank++] = static_cast<std::int64_t>(dims[axis]);
  return shape;
}

// Without times of creation in it, a file is a function of its content: two runs of prepare write
// the same bytes.
Handle H5File::Impl::creation_list() const {
  Handle list{check(H5Pcreate(H5P_DATASET_CREATE), "H5Pcreate"), H5Pclose};
  check(H5Pset_obj_track_times(list.get(), false), "H5Pset_obj_track_times");
  return list;
}

Handle H5File::Impl::creation_list(const Shape& shape, const H5Layout& layout) const {
  OPENMOE_CHECK(layout.deflate == 0 || layout.chunk_rows > 0, "compression needs chunks");
  Handle list = creation_list();
  // Chunks cannot exceed a fixed extent and cannot be empty.
  if (layout.chunk_rows == 0 || shape.rank == 0 || shape.num_elements() == 0) return list;
  hsize_t chunk[Shape::kMaxRank] = {};
  for (int axis = 0; axis < shape.rank; ++axis)
    chunk[axis] =
        static_cast<hsize_t>(axis == 0 ? std::min(layout.chunk_rows, shape[0]) : shape[axis]);
  check(H5Pset_chunk(list.get(), shape.rank, chunk), "H5Pset_chunk");
  if (layout.deflate > 0) {
    check(H5Pset_shuffle(list.get()), "H5Pset_shuffle");
    check(H5Pset_deflate(list.get(), static_cast<unsigned>(layout.deflate)), "H5Pset_deflate");
  }
  return list;
}

Handle H5File::Impl::create_dataset(const std::string& name, hid_t type, const Handle& space,
                                    const Handle& creation) const {
  const Handle links = link_list();
  return {check(H5Dcreate2(file.get(), name.c_str(), type, space.get(), links.get(), creation.get(),
                           H5P_DEFAULT),
                "H5Dcreate2", name),
          H5Dclose};
}

Handle H5File::Impl::open_numbers(const std::string& name) const {
  Handle dataset = open_dataset(name);
  const Handle stored{check(H5Dget_type(dataset.get()), "H5Dget_type", name), H5Tclose};
  const H5T_class_t kind = H5Tget_class(stored.get());
  if (kind != H5T_INTEGER && kind != H5T_FLOAT)
    h5_fault("H5Dread", path, name, "it does not hold numbers");
  return dataset;
}

void H5File::Impl::read_selection(const Handle& dataset, const std::string& name,
                                  const std::string& type, const Piece& box, const Shape& memory,
                                  void* dst) const {
  const Shape shape = shape_of(dataset, name);
  hsize_t start[Shape::kMaxRank] = {}, count[Shape::kMaxRank] = {};
  hsize_t memory_start[Shape::kMaxRank] = {}, memory_count[Shape::kMaxRank] = {};
  for (int axis = 0; axis < shape.rank; ++axis) {
    const std::int64_t begin = box.global_begin[axis], size = box.size[axis];
    if (begin < 0 || size < 0 || begin + size > shape[axis])
      h5_fault("H5Dread", path, name,
               concat(axis == 0 ? std::string("rows") : concat("elements of axis ", axis), " [",
                      begin, ", ", begin + size, ") of ", shape[axis], " were asked for"));
    start[axis] = static_cast<hsize_t>(begin);
    count[axis] = static_cast<hsize_t>(size);
    memory_start[axis] = static_cast<hsize_t>(box.local_begin[axis]);
    memory_count[axis] = static_cast<hsize_t>(memory[axis]);
  }
  if (box.size.num_elements() == 0) return;
  const Handle file_space = space_of(dataset, name);
  check(H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, start, nullptr, count, nullptr),
        "H5Sselect_hyperslab", name);
  const Handle memory_space{
      check(H5Screate_simple(shape.rank, memory_count, nullptr), "H5Screate_simple"), H5Sclose};
  check(H5Sselect_hyperslab(memory_space.get(), H5S_SELECT_SET, memory_start, nullptr, count,
                            nullptr),
        "H5Sselect_hyperslab", name);
  check(H5Dread(dataset.get(), number_type(type).memory(), memory_space.get(), file_space.get(),
                H5P_DEFAULT, dst),
        "H5Dread", name);
}

void H5File::Impl::write_rows(const std::string& name, const std::string& type, const Shape& shape,
                              std::int64_t begin, std::int64_t rows, const void* src) const {
  Handle dataset = open_dataset(name);
  hsize_t start[Shape::kMaxRank] = {static_cast<hsize_t>(begin)}, count[Shape::kMaxRank] = {};
  for (int axis = 0; axis < shape.rank; ++axis)
    count[axis] = static_cast<hsize_t>(axis == 0 ? rows : shape[axis]);
  const Handle file_space = space_of(dataset, name);
  check(H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, start, nullptr, count, nullptr),
        "H5Sselect_hyperslab", name);
  const Handle memory_space{check(H5Screate_simple(shape.rank, count, nullptr), "H5Screate_simple"),
                            H5Sclose};
  check(H5Dwrite(dataset.get(), number_type(type).memory(), memory_space.get(), file_space.get(),
                 H5P_DEFAULT, src),
        "H5Dwrite", name);
  check(dataset.reset(), "H5Dclose", name);
}

template <typename Value>
void H5File::Impl::write_attribute(const std::string& object_name, const std::string& name,
                                   hid_t file_type, hid_t memory_type, const Value* value) const {
  const Handle object = open_object(object_name);
  const std::string place = object_name + "@" + name;
  if (H5Aexists(object.get(), name.c_str()) > 0)
    check(H5Adelete(object.get(), name.c_str()), "H5Adelete", place);
  const Handle space{check(H5Screate(H5S_SCALAR), "H5Screate", place), H5Sclose};
  const Handle attribute{check(H5Acreate2(object.get(), name.c_str(), file_type, space.get(),
                                          H5P_DEFAULT, H5P_DEFAULT),
                               "H5Acreate2", place),
                         H5Aclose};
  check(H5Awrite(attribute.get(), memory_type, value), "H5Awrite", place);
}

H5File::H5File(const std::string& path, Mode mode) : impl_(std::make_unique<Impl>()) {
  const H5Lock lock;
  impl_->path = path;
  const Handle access{impl_->check(H5Pcreate(H5P_FILE_ACCESS), "H5Pcreate"), H5Pclose};
  // Files are written once under a temporary name and read by many; locks only break on network
  // file systems.
  impl_->check(H5Pset_file_locking(access.get(), false, true), "H5Pset_file_locking");
  impl_->check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_EARLIEST, H5F_LIBVER_V110),
               "H5Pset_libver_bounds");
  if (mode == Mode::read)
    impl_->file = {impl_->check(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), "H5Fopen"),
                   H5Fclose};
  else
    impl_->file = {impl_->check(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()),
                                "H5Fcreate"),
                   H5Fclose};
}

H5File::~H5File() {
  if (impl_ == nullptr) return;
  const H5Lock lock;
  impl_->file.reset();
}

H5File::H5File(H5File&&) noexcept = default;

H5File& H5File::operator=(H5File&& other) noexcept {
  std::swap(impl_, other.impl_);  // the old file closes with `other`
  return *this;
}

const std::string& H5File::path() const {
  return impl_->path;
}

void H5File::close() {
  const H5Lock lock;
  if (impl_->file.get() < 0) return;
  std::string reason;
  if (H5Fflush(impl_->file.get(), H5F_SCOPE_GLOBAL) < 0) reason = h5_reason();
  if (impl_->file.reset() < 0 && reason.empty()) reason = h5_reason();
  if (!reason.empty()) h5_fault("H5Fclose", impl_->path, "", reason);
}

bool H5File::exists(const std::string& name) const {
  const H5Lock lock;
  return h5_link_exists(impl_->file.get(), name);
}

std::vector<std::string> H5File::children(const std::string& group) const {
  const H5Lock lock;
  const Handle object = impl_->open_object(group);
  H5G_info_t info;
  impl_->check(H5Gget_info(object.get(), &info), "H5Gget_info", group);
  std::vector<std::string> names;
  for (hsize_t i = 0; i < info.nlinks; ++i) {
    const auto name_at = [&](char* text, std::size_t size) {
      return impl_->check(H5Lget_name_by_idx(object.get(), ".", H5_INDEX_NAME, H5_ITER_INC, i, text,
                                             size, H5P_DEFAULT),
                          "H5Lget_name_by_idx", group);
    };
    std::string name(static_cast<std::size_t>(name_at(nullptr, 0)), '\0');
    name_at(name.data(), name.size() + 1);
    names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

void H5File::create_group(const std::string& name) {
  const H5Lock lock;
  if (h5_link_exists(impl_->file.get(), name)) return;
  const Handle links = impl_->link_list();
  const hid_t group =
      H5Gcreate2(impl_->file.get(), name.c_str(), links.get(), H5P_DEFAULT, H5P_DEFAULT);
  impl_->check(H5Gclose(impl_->check(group, "H5Gcreate2", name)), "H5Gclose", name);
}

H5File::Info H5File::info(const std::string& name) const {
  const H5Lock lock;
  const Handle dataset = impl_->open_dataset(name);
  const Handle type{impl_->check(H5Dget_type(dataset.get()), "H5Dget_type", name), H5Tclose};
  Info info{impl_->shape_of(dataset, name), type_name_of(type.get()),
            static_cast<std::int64_t>(H5Tget_size(type.get())),
            static_cast<std::int64_t>(H5Dget_storage_size(dataset.get()))};
  if (info.type == "u16" && impl_->is_bf16(dataset)) info.type = "bf16";
  return info;
}

void H5File::read(const std::string& name, Tensor dst) const {
  const Info found = info(name);
  if (!(found.shape == dst.shape))
    h5_fault(
        "H5Dread", path(), name,
        concat("its shape is ", found.shape.to_string(), ", expected ", dst.shape.to_string()));
  read_rows(name, 0, dst);
}

void H5File::read_rows(const std::string& name, std::int64_t begin, Tensor dst) const {
  OPENMOE_CHECK(dst.device == Device::host, "HDF5 reads into host memory");
  const std::int64_t rows = dst.shape.rank == 0 ? 1 : dst.size(0);
  const Info found = info(name);
  const std::string want = name_of(dst.dtype);
  bool fits = found.shape.rank == dst.shape.rank;
  for (int axis = 1; fits && axis < dst.shape.rank; ++axis)
    fits = found.shape[axis] == dst.shape[axis];
  if (!fits)
    h5_fault("H5Dread", path(), name,
             concat("its shape is ", found.shape.to_string(), ", rows of ", dst.shape.to_string(),
                    " were expected"));
  if (found.type == want || (found.type != "bf16" && want != "bf16"))
    return read_raw(name, want, begin, rows, dst.data);
  // bf16 bits widen to float; no other conversion has a meaning.
  if (found.type != "bf16" || dst.dtype != DType::f32)
    h5_fault("H5Dread", path(), name, concat("it holds ", found.type, ", expected ", want));
  std::vector<BFloat16> bits(static_cast<std::size_t>(dst.num_elements()));
  read_raw(name, "bf16", begin, rows, bits.data());
  std::transform(bits.begin(), bits.end(), dst.as<float>(),
                 [](BFloat16 value) { return static_cast<float>(value); });
}

void H5File::read_box(const std::string& name, const Piece& box, Tensor dst) const {
  const Shape& size = box.size;
  OPENMOE_CHECK(dst.device == Device::host, "HDF5 reads into host memory");
  OPENMOE_CHECK(size.rank == dst.shape.rank, size.to_string(), " of ", dst.shape.to_string());
  for (int axis = 0; axis < size.rank; ++axis)
    OPENMOE_CHECK(
        box.local_begin[axis] >= 0 && box.local_begin[axis] + size[axis] <= dst.size(axis),
        size.to_string(), " at ", box.local_begin.to_string(), " of ", dst.shape.to_string());
  const Info found = info(name);
  const std::string want = name_of(dst.dtype);
  if (found.shape.rank != size.rank)
    h5_fault("H5Dread", path(), name,
             concat("its shape is ", found.shape.to_string(), ", a box of ", size.to_string(),
                    " was expected"));
  if (found.type != want && (found.type == "bf16" || want == "bf16"))
    h5_fault("H5Dread", path(), name, concat("it holds ", found.type, ", expected ", want));
  const H5Lock lock;
  impl_->read_selection(impl_->open_numbers(name), name, want, box, dst.shape, dst.data);
}

void H5File::write(const std::string& name, Tensor src, const H5Layout& layout) {
  OPENMOE_CHECK(src.device == Device::host, "HDF5 writes from host memory");
  write_raw(name, name_of(src.dtype), src.shape, src.data, layout);
}

void H5File::read_raw(const std::string& name, const std::string& type, std::int64_t begin,
                      std::int64_t rows, void* dst) const {
  const H5Lock lock;
  const Handle dataset = impl_->open_numbers(name);
  Shape shape = impl_->shape_of(dataset, name);
  if (shape.rank == 0) {
    impl_->check(
        H5Dread(dataset.get(), number_type(type).memory(), H5S_ALL, H5S_ALL, H5P_DEFAULT, dst),
        "H5Dread", name);
    return;
  }
  shape.sizes[0] = rows;
  impl_->read_selection(dataset, name, type, rows_piece(begin, shape), shape, dst);
}

void H5File::write_raw(const std::string& name, const std::string& type, const Shape& shape,
                       const void* src, const H5Layout& layout) {
  // Large ones in blocks, so that other threads get the library in between.
  constexpr std::int64_t kBlockBytes = 16 << 20;
  const std::int64_t rows = shape.rank == 0 ? 1 : shape[0];
  const std::int64_t row_bytes =
      shape.num_elements() / std::max<std::int64_t>(1, rows) * number_type(type).bytes;
  const bool in_blocks = layout.chunk_rows == 0 && rows * row_bytes > kBlockBytes;
  {
    const H5Lock lock;
    hsize_t dims[Shape::kMaxRank] = {};
    for (int axis = 0; axis < shape.rank; ++axis) dims[axis] = static_cast<hsize_t>(shape[axis]);
    const Handle space{impl_->check(shape.rank == 0 ? H5Screate(H5S_SCALAR)
                                                    : H5Screate_simple(shape.rank, dims, nullptr),
                                    "H5Screate_simple", name),
                       H5Sclose};
    Handle dataset = impl_->create_dataset(name, number_type(type).file(), space,
                                           impl_->creation_list(shape, layout));
    if (shape.num_elements() > 0 && !in_blocks)
      impl_->check(
          H5Dwrite(dataset.get(), number_type(type).memory(), H5S_ALL, H5S_ALL, H5P_DEFAULT, src),
          "H5Dwrite", name);
    impl_->check(dataset.reset(), "H5Dclose", name);
  }
  const std::int64_t block =
      std::max<std::int64_t>(1, kBlockBytes / std::max<std::int64_t>(1, row_bytes));
  for (std::int64_t begin = 0; in_blocks && begin < rows; begin += block) {
    const H5Lock lock;
    impl_->write_rows(name, type, shape, begin, std::min(block, rows - begin),
                      static_cast<const char*>(src) + begin * row_bytes);
  }
  if (type == "bf16") set_attribute(name, "dtype", std::string("bf16"));
}

std::vector<std::int64_t> H5File::chunk_addresses(const std::string& name) const {
  const H5Lock lock;
  const Handle dataset = impl_->open_dataset(name);
  const Handle list{impl_->check(H5Dget_create_plist(dataset.get()), "H5Dget_create_plist", name),
                    H5Pclose};
  if (H5Pget_nfilters(list.get()) > 0) return {};
  const Shape shape = impl_->shape_of(dataset, name);
  OPENMOE_CHECK(shape.rank == 1, name, " has rank ", shape.rank);
  std::vector<haddr_t> addresses;
  if (H5Pget_layout(list.get()) == H5D_CONTIGUOUS) {
    if (shape[0] > 0) addresses.push_back(H5Dget_offset(dataset.get()));
  } else {
    hsize_t chunk = 0;
    impl_->check(H5Pget_chunk(list.get(), 1, &chunk), "H5Pget_chunk", name);
    for (hsize_t begin = 0; begin < static_cast<hsize_t>(shape[0]); begin += chunk) {
      haddr_t address = HADDR_UNDEF;
      hsize_t bytes = 0;
      unsigned mask = 0;
      impl_->check(H5Dget_chunk_info_by_coord(dataset.get(), &begin, &mask, &address, &bytes),
                   "H5Dget_chunk_info_by_coord", name);
      addresses.push_back(address);
    }
  }
  if (std::find(addresses.begin(), addresses.end(), HADDR_UNDEF) != addresses.end())
    h5_fault("H5Dget_offset", impl_->path, name, "a part of the dataset was never written");
  return {addresses.begin(), addresses.end()};
}

std::int64_t H5File::chunk_rows(const std::string& name) const {
  const H5Lock lock;
  const Handle dataset = impl_->open_dataset(name);
  const Handle list{impl_->check(H5Dget_create_plist(dataset.get()), "H5Dget_create_plist", name),
                    H5Pclose};
  if (H5Pget_layout(list.get()) != H5D_CHUNKED) return 0;
  hsize_t chunk[Shape::kMaxRank] = {};
  impl_->check(H5Pget_chunk(list.get(), Shape::kMaxRank, chunk), "H5Pget_chunk", name);
  return static_cast<std::int64_t>(chunk[0]);
}

void H5File::create_growable(const std::string& name, const std::string& type,
                             const H5Layout& layout) {
  OPENMOE_CHECK(layout.chunk_rows > 0, "a growable dataset needs chunks");
  const H5Lock lock;
  const hsize_t none = 0;
  const hsize_t unlimited = H5S_UNLIMITED;
  const Handle space{impl_->check(H5Screate_simple(1, &none, &unlimited), "H5Screate_simple", name),
                     H5Sclose};
  const Handle list = impl_->creation_list(Shape{layout.chunk_rows}, layout);
  const Handle dataset = impl_->create_dataset(name, number_type(type).file(), space, list);
}

void H5File::append(const std::string& name, const void* data, std::int64_t count) {
  if (count == 0) return;
  const H5Lock lock;
  Handle dataset = impl_->open_dataset(name);
  const Handle stored{impl_->check(H5Dget_type(dataset.get()), "H5Dget_type", name), H5Tclose};
  const std::int64_t begin = impl_->shape_of(dataset, name)[0];
  const auto start = static_cast<hsize_t>(begin);
  const auto extent = start + static_cast<hsize_t>(count);
  const auto length = static_cast<hsize_t>(count);
  impl_->check(H5Dset_extent(dataset.get(), &extent), "H5Dset_extent", name);
  const Handle file_space = impl_->space_of(dataset, name);
  impl_->check(
      H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, &start, nullptr, &length, nullptr),
      "H5Sselect_hyperslab", name);
  const Handle memory_space{impl_->check(H5Screate_simple(1, &length, nullptr), "H5Screate_simple"),
                            H5Sclose};
  impl_->check(H5Dwrite(dataset.get(), number_type(type_name_of(stored.get())).memory(),
                        memory_space.get(), file_space.get(), H5P_DEFAULT, data),
               "H5Dwrite", name);
  impl_->check(dataset.reset(), "H5Dclose", name);
}

std::vector<std::string> H5File::read_strings(const std::string& name) const {
  const H5Lock lock;
  const Handle dataset = impl_->open_dataset(name);
  const Handle type{impl_->check(H5Dget_type(dataset.get()), "H5Dget_type", name), H5Tclose};
  if (H5Tget_class(type.get()) != H5T_STRING)
    h5_fault("H5Dread", impl_->path, name, "it holds no strings");
  const std::int64_t count = impl_->shape_of(dataset, name).num_elements();
  std::vector<std::string> values;
  if (count == 0) return values;
  if (H5Tis_variable_str(type.get()) > 0) {
    std::vector<char*> texts(static_cast<std::size_t>(count), nullptr);
    impl_->check(H5Dread(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, texts.data()),
                 "H5Dread", name);
    for (char* text : texts) {
      values.emplace_back(text == nullptr ? "" : text);
      H5free_memory(text);
    }
    return values;
  }
  const std::size_t width = H5Tget_size(type.get());
  std::string texts(width * static_cast<std::size_t>(count), '\0');
  impl_->check(H5Dread(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, texts.data()),
               "H5Dread", name);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::string text = texts.substr(static_cast<std::size_t>(i) * width, width);
    values.push_back(text.substr(0, text.find('\0')));
  }
  return values;
}

void H5File::write_strings(const std::string& name, const std::vector<std::string>& values) {
  const H5Lock lock;
  const Handle type = impl_->text_type();
  const auto count = static_cast<hsize_t>(values.size());
  const Handle space{impl_->check(H5Screate_simple(1, &count, nullptr), "H5Screate_simple"),
                     H5Sclose};
  Handle dataset = impl_->create_dataset(name, type.get(), space, impl_->creation_list());
  std::vector<const char*> texts;
  texts.reserve(values.size());
  for (const std::string& value : values) texts.push_back(value.c_str());
  if (count > 0)
    impl_->check(H5Dwrite(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, texts.data()),
                 "H5Dwrite", name);
  impl_->check(dataset.reset(), "H5Dclose", name);
}

bool H5File::has_attribute(const std::string& object, const std::string& name) const {
  const H5Lock lock;
  return H5Aexists(impl_->open_object(object).get(), name.c_str()) > 0;
}

std::string H5File::string_attribute(const std::string& object, const std::string& name) const {
  const H5Lock lock;
  return impl_->read_string_attribute(impl_->open_object(object), object, name);
}

double H5File::double_attribute(const std::string& object, const std::string& name) const {
  const H5Lock lock;
  return impl_->read_number_attribute<double>(object, name);
}

std::int64_t H5File::int_attribute(const std::string& object, const std::string& name) const {
  const H5Lock lock;
  return impl_->read_number_attribute<std::int64_t>(object, name);
}

void H5File::set_attribute(const std::string& object, const std::string& name,
                           const std::string& value) {
  const H5Lock lock;
  const Handle type = impl_->text_type();
  const char* text = value.c_str();
  impl_->write_attribute(object, name, type.get(), type.get(), &text);
}

void H5File::set_attribute(const std::string& object, const std::string& name, double value) {
  const H5Lock lock;
  impl_->write_attribute(object, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

void H5File::set_attribute(const std::string& object, const std::string& name, std::int64_t value) {
  const H5Lock lock;
  impl_->write_attribute(object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

}  // namespace openmoe
