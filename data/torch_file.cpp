#include "data/torch_file.h"

#include <zip.h>

#include <algorithm>
#include <map>
#include <string_view>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/torch_pickle.h"

namespace openmoe {
namespace {

// A state dict needs about 150 bytes per tensor. The limit bounds the memory that a hostile file
// can ask for.
constexpr std::int64_t kLargestPickle = 16 << 20;
constexpr zip_int64_t kMostRecords = 1 << 20;
constexpr std::int64_t kBufferBytes = 1 << 20;
constexpr std::string_view kPickleSuffix = "/data.pkl";

struct ZipCloser {
  void operator()(zip_t* archive) const { zip_discard(archive); }
  void operator()(zip_file_t* record) const { zip_fclose(record); }
};

struct Record {
  zip_uint64_t index = 0;
  std::int64_t size_bytes = 0;
  bool is_plain = false;  // neither compressed nor encrypted
};

}  // namespace

struct TorchFile::Impl {
  std::string path;
  std::unique_ptr<zip_t, ZipCloser> archive;
  std::map<std::string, Record> records;
  std::string folder;  // common prefix of the records, with "/"
  std::vector<PickledTensor> tensors;
  std::vector<WeightInfo> weights;

  // The record that was read last, and how far.
  std::unique_ptr<zip_file_t, ZipCloser> open_record;
  std::string open_name;
  std::int64_t position = 0;
  std::vector<char> buffer;

  [[noreturn]] void refuse(const std::string& what) const { throw UserError(path + ": " + what); }

  void open() {
    int code = 0;
    archive.reset(zip_open(path.c_str(), ZIP_RDONLY, &code));
    if (archive) return;
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string reason = zip_error_strerror(&error);
    zip_error_fini(&error);
    refuse("cannot be read as a zip archive, which torch.save writes: " + reason +
           "; it may be truncated");
  }

  void list_records() {
    const zip_int64_t count = zip_get_num_entries(archive.get(), 0);
    if (count > kMostRecords) refuse(concat("has ", count, " records, allowed: ", kMostRecords));
    for (zip_int64_t i = 0; i < count; ++i) {
      zip_stat_t stat;
      const auto index = static_cast<zip_uint64_t>(i);
      constexpr zip_uint64_t kNeeded = ZIP_STAT_NAME | ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE |
                                       ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD;
      if (zip_stat_index(archive.get(), index, 0, &stat) != 0 || (stat.valid & kNeeded) != kNeeded)
        refuse(concat("record ", i, " of the archive is damaged"));
      const Record record{index, static_cast<std::int64_t>(stat.size),
                          stat.comp_method == ZIP_CM_STORE &&
                              stat.encryption_method == ZIP_EM_NONE && stat.size == stat.comp_size};
      if (!records.emplace(stat.name, record).second)
        refuse("record " + in_quotes(stat.name) + " stands more than once in the archive");
      if (!std::string_view(stat.name).ends_with(kPickleSuffix)) continue;
      if (!folder.empty()) refuse("holds more than one data.pkl");
      folder = stat.name;
      folder.resize(folder.size() - kPickleSuffix.size() + 1);
    }
    if (folder.empty())
      refuse(
          "holds no data.pkl; allowed: what torch.save(model.state_dict(), ...) writes, or "
          "safetensors");
  }

  const Record& find_record(const std::string& name, const std::string& who) const {
    const auto found = records.find(name);
    if (found == records.end())
      refuse(who + " needs the record " + in_quotes(name) + ", which is not in the archive");
    if (!found->second.is_plain)
      refuse("record " + in_quotes(name) +
             " is compressed or encrypted; torch.save stores it plainly");
    return found->second;
  }

  void seek(const std::string& name, std::int64_t offset) {
    if (!open_record || open_name != name) {
      open_record.reset(zip_fopen_index(archive.get(), records.at(name).index, 0));
      if (!open_record) fail(name, zip_strerror(archive.get()));
      open_name = name;
      position = 0;
    }
    if (position == offset) return;
    if (zip_fseek(open_record.get(), offset, SEEK_SET) != 0)
      fail(name, zip_file_strerror(open_record.get()));
    position = offset;
  }
  [[noreturn]] void fail(const std::string& name, const std::string& reason) const {
    refuse("record " + in_quotes(name) + " cannot be read: " + reason +
           "; the file is damaged or truncated");
  }

  void read_record(const std::string& name, std::int64_t offset, void* dst,
                   std::int64_t size_bytes) {
    seek(name, offset);
    auto* to = static_cast<char*>(dst);
    while (size_bytes > 0) {
      const zip_int64_t got =
          zip_fread(open_record.get(), to, static_cast<zip_uint64_t>(size_bytes));
      if (got < 0) fail(name, zip_file_strerror(open_record.get()));
      if (got == 0) fail(name, "it ends too early");
      to += got;
      position += got;
      size_bytes -= got;
    }
    // The library compares the checksum when it meets the end of a record that was read from front
    // to back.
    char beyond = 0;
    if (position == records.at(name).size_bytes && zip_fread(open_record.get(), &beyond, 1) < 0)
      fail(name, zip_file_strerror(open_record.get()));
  }

  void read_pickle() {
    const std::string name = folder + "data.pkl";
    const Record& record = find_record(name, "the file");
    if (record.size_bytes > kLargestPickle)
      refuse(concat("its data.pkl has ", record.size_bytes, " bytes, allowed: ", kLargestPickle));
    std::string pickle(static_cast<std::size_t>(record.size_bytes), '\0');
    read_record(name, 0, pickle.data(), record.size_bytes);
    tensors = parse_state_dict(pickle, path + ": data.pkl");
  }

  void check_byte_order() {
    const std::string name = folder + "byteorder";
    if (!records.contains(name)) return;
    const Record& record = find_record(name, "the file");
    std::string order(static_cast<std::size_t>(std::min<std::int64_t>(record.size_bytes, 8)), '\0');
    read_record(name, 0, order.data(), static_cast<std::int64_t>(order.size()));
    if (order != "little") refuse("has byteorder " + in_quotes(order) + ", allowed: \"little\"");
  }

  void check_storages() const {
    for (const PickledTensor& tensor : tensors) {
      const std::string who = "tensor " + in_quotes(tensor.weight.name);
      const Record& record = find_record(record_of(tensor), who);
      const std::int64_t needed = tensor.storage_elements * tensor.element_bytes;
      if (record.size_bytes != needed)
        refuse(concat(who, " has a storage of ", needed, " bytes, but its record ",
                      in_quotes(record_of(tensor)), " has ", record.size_bytes));
    }
  }

  std::string record_of(const PickledTensor& tensor) const {
    return folder + "data/" + tensor.storage;
  }

  // `count` neighbouring elements of a storage to dst[0], dst[step], dst[2*step], ...
  void read_run(const PickledTensor& tensor, std::int64_t offset, std::int64_t count, float* dst,
                std::int64_t step) {
    const std::int64_t size = size_of(tensor.weight.type);
    const std::string record = record_of(tensor);
    if (step == 1 && tensor.weight.type == WeightType::f32) {
      read_record(record, offset * size, dst, count * size);
      return;
    }
    buffer.resize(2 * kBufferBytes);  // as stored, then as f32
    const std::int64_t longest = kBufferBytes / static_cast<std::int64_t>(sizeof(float));
    auto* values = reinterpret_cast<float*>(buffer.data() + kBufferBytes);
    while (count > 0) {
      const std::int64_t part = std::min(count, longest);
      read_record(record, offset * size, buffer.data(), part * size);
      float* decoded = step == 1 ? dst : values;
      decode_weights(tensor.weight.type, buffer.data(), decoded, part);
      for (std::int64_t i = 0; step != 1 && i < part; ++i) dst[i * step] = decoded[i];
      dst += part * step;
      offset += part;
      count -= part;
    }
  }

  // Where row `row` of the tensor as a matrix begins in its storage.
  static std::int64_t offset_of_row(const PickledTensor& tensor, std::int64_t row) {
    std::int64_t offset = tensor.offset;
    for (std::size_t axis = tensor.weight.shape.size() - 1; axis-- > 0;) {
      offset += row % tensor.weight.shape[axis] * tensor.strides[axis];
      row /= tensor.weight.shape[axis];
    }
    return offset;
  }

  // A tensor whose storage is row-major from its first element.
  static bool is_contiguous(const PickledTensor& tensor) {
    std::int64_t expected = 1;
    for (std::size_t axis = tensor.strides.size(); axis-- > 0;) {
      const std::int64_t size = tensor.weight.shape[axis];
      if (size != 1 && tensor.strides[axis] != expected) return false;
      expected *= size;
    }
    return true;
  }

  void read_rows(const PickledTensor& tensor, std::int64_t begin, std::int64_t rows, float* dst) {
    const std::int64_t columns = tensor.weight.num_columns();
    if (is_contiguous(tensor)) {
      read_run(tensor, tensor.offset + begin * columns, rows * columns, dst, 1);
      return;
    }
    const std::size_t rank = tensor.weight.shape.size();
    if (columns == 1 || tensor.strides[rank - 1] == 1) {  // whole rows, apart from each other
      for (std::int64_t row = 0; row < rows; ++row)
        read_run(tensor, offset_of_row(tensor, begin + row), columns, dst + row * columns, 1);
      return;
    }
    if (rank < 2 || tensor.strides[rank - 2] != 1)
      refuse(concat("tensor ", in_quotes(tensor.weight.name), " of shape ",
                    shape_to_string(tensor.weight.shape), " has the strides ",
                    shape_to_string(tensor.strides),
                    ", allowed: rows or columns side by side; save it with .contiguous()"));
    // A transposed matrix, or a stack of them: columns lie side by side. Rows of one matrix at a
    // time.
    const std::int64_t height = tensor.weight.shape[rank - 2];
    while (rows > 0) {
      const std::int64_t count = std::min(rows, height - begin % height);
      const std::int64_t offset = offset_of_row(tensor, begin);
      for (std::int64_t column = 0; column < columns; ++column)
        read_run(tensor, offset + column * tensor.strides[rank - 1], count, dst + column, columns);
      dst += count * columns;
      begin += count;
      rows -= count;
    }
  }
};

TorchFile::TorchFile(const std::string& path) : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->open();
  impl_->list_records();
  impl_->check_byte_order();
  impl_->read_pickle();
  impl_->check_storages();
  for (const PickledTensor& tensor : impl_->tensors) impl_->weights.push_back(tensor.weight);
}

TorchFile::~TorchFile() = default;

const std::string& TorchFile::path() const {
  return impl_->path;
}

const std::vector<WeightInfo>& TorchFile::weights() const {
  return impl_->weights;
}

void TorchFile::read_rows(std::size_t index, std::int64_t begin, std::int64_t rows, float* dst) {
  const PickledTensor& tensor = impl_->tensors.at(index);
  OPENMOE_CHECK(begin >= 0 && rows >= 0 && begin + rows <= tensor.weight.num_rows(), "rows [",
                begin, ", ", begin + rows, ") of ", tensor.weight.name);
  if (tensor.weight.type == WeightType::other)
    throw UserError(path() + ": tensor " + in_quotes(tensor.weight.name) + " is a " +
                    tensor.weight.type_name +
                    ", allowed: FloatStorage, HalfStorage, BFloat16Storage");
  if (rows > 0) impl_->read_rows(tensor, begin, rows, dst);
}

}  // namespace openmoe
