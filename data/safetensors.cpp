#include "data/safetensors.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are read as they are stored");

using nlohmann::json;

constexpr std::int64_t kLengthBytes = 8;
constexpr std::int64_t kLongestHeader = 100'000'000;  // the limit of the original library
constexpr std::size_t kHighestRank = 16;
constexpr std::int64_t kBufferBytes = 1 << 20;
constexpr const char* kMetadata = "__metadata__";

struct TypeName {
  const char* name;
  WeightType type;
  std::int64_t size_bytes;
};
constexpr TypeName kTypes[] = {{"F32", WeightType::f32, 4},      {"F16", WeightType::f16, 2},
                               {"BF16", WeightType::bf16, 2},    {"F64", WeightType::other, 8},
                               {"I64", WeightType::other, 8},    {"I32", WeightType::other, 4},
                               {"I16", WeightType::other, 2},    {"I8", WeightType::other, 1},
                               {"U64", WeightType::other, 8},    {"U32", WeightType::other, 4},
                               {"U16", WeightType::other, 2},    {"U8", WeightType::other, 1},
                               {"BOOL", WeightType::other, 1},   {"F8_E4M3", WeightType::other, 1},
                               {"F8_E5M2", WeightType::other, 1}};

const TypeName* find_type(const std::string& name) {
  const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes),
                                   [&](const TypeName& type) { return name == type.name; });
  return found == std::end(kTypes) ? nullptr : found;
}

// Takes the header's events and accepts nothing but its exact form, so that memory stays in
// proportion to the tensors described, whatever the text. Returning false ends the parse; problem()
// says why.
class HeaderEvents : public json::json_sax_t {
 public:
  const std::string& problem() const { return problem_; }
  std::vector<SafetensorsEntry>& entries() { return entries_; }

  bool start_object(std::size_t) override {
    switch (place_) {
      case Place::before:
        place_ = Place::root;
        return true;
      case Place::after_name:
        place_ = is_metadata_ ? Place::metadata : Place::entry;
        if (!is_metadata_) entries_.emplace_back().weight.name = name_;
        has_dtype_ = has_shape_ = has_offsets_ = false;
        return true;
      default:
        return unexpected("an object");
    }
  }

  bool key(string_t& key) override {
    if (place_ == Place::root) {
      name_ = key;
      is_metadata_ = key == kMetadata;
      place_ = Place::after_name;
      if (!names_.insert(key).second) return fail("stands more than once in the header");
      return true;
    }
    if (place_ == Place::metadata) {
      if (!metadata_keys_.insert(key).second) return fail("repeats its key " + in_quotes(key));
      place_ = Place::after_metadata_key;
      return true;
    }
    if (key == "dtype") return enter(Place::after_dtype, has_dtype_, key);
    if (key == "shape") return enter(Place::after_shape, has_shape_, key);
    if (key == "data_offsets") return enter(Place::after_offsets, has_offsets_, key);
    return fail("has the unknown key " + in_quotes(key) + ", allowed: dtype, shape, data_offsets");
  }

  bool end_object() override {
    if (place_ == Place::root) {
      place_ = Place::after;
      return true;
    }
    if (place_ == Place::entry) {
      if (!has_dtype_) return fail("has no dtype");
      if (!has_shape_) return fail("has no shape");
      if (!has_offsets_) return fail("has no data_offsets");
    }
    place_ = Place::root;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::after_shape) {
      place_ = Place::shape;
      return true;
    }
    if (place_ == Place::after_offsets) {
      place_ = Place::offsets;
      num_offsets_ = 0;
      return true;
    }
    return unexpected("a list");
  }

  bool end_array() override {
    if (place_ == Place::offsets && num_offsets_ != 2)
      return fail("has " + std::to_string(num_offsets_) + " data_offsets, allowed: 2");
    place_ = Place::entry;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::shape && place_ != Place::offsets)
      return unexpected(std::to_string(value));
    if (value > static_cast<number_unsigned_t>(INT64_MAX)) return unexpected(std::to_string(value));
    const auto number = static_cast<std::int64_t>(value);
    SafetensorsEntry& entry = entries_.back();
    if (place_ == Place::shape) {
      if (entry.weight.shape.size() == kHighestRank)
        return fail("has more than " + std::to_string(kHighestRank) + " axes");
      entry.weight.shape.push_back(number);
      return true;
    }
    if (++num_offsets_ > 2) return fail("has more than 2 data_offsets");
    (num_offsets_ == 1 ? entry.begin : entry.end) = number;
    return true;
  }

  bool string(string_t& text) override {
    if (place_ == Place::after_metadata_key) {
      place_ = Place::metadata;
      return true;
    }
    if (place_ != Place::after_dtype) return unexpected(in_quotes(text));
    place_ = Place::entry;
    const TypeName* type = find_type(text);
    if (type == nullptr) return fail("has the dtype " + in_quotes(text) + ", which is unknown");
    entries_.back().weight.type = type->type;
    entries_.back().weight.type_name = text;
    return true;
  }

  bool null() override { return unexpected("null"); }
  bool boolean(bool value) override { return unexpected(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { return unexpected(std::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) override { return unexpected(text); }
  bool binary(binary_t&) override { return unexpected("bytes"); }
  bool parse_error(std::size_t byte, const std::string&, const json::exception&) override {
    problem_ = "its header is no valid JSON at byte " + std::to_string(byte) + " of it";
    return false;
  }

 private:
  enum class Place {
    before,
    root,
    after_name,
    metadata,
    after_metadata_key,
    entry,
    after_dtype,
    after_shape,
    shape,
    after_offsets,
    offsets,
    after
  };

  bool enter(Place place, bool& seen, const std::string& key) {
    if (seen) return fail("repeats its key " + in_quotes(key));
    seen = true;
    place_ = place;
    return true;
  }
  bool fail(const std::string& what) {
    problem_ = (is_metadata_ ? "" : "tensor ") + in_quotes(name_) + " " + what;
    return false;
  }
  bool unexpected(const std::string& found) {
    if (place_ == Place::before || place_ == Place::root || place_ == Place::after) {
      problem_ = "its header is not one JSON object";
      return false;
    }
    const char* where = "";
    if (place_ == Place::after_dtype) where = " as dtype, allowed: a name such as \"F32\"";
    if (place_ == Place::after_shape || place_ == Place::shape)
      where = " in its shape, allowed: whole numbers from 0 to 2^63 - 1";
    if (place_ == Place::after_offsets || place_ == Place::offsets)
      where = " in its data_offsets, allowed: whole numbers from 0 to 2^63 - 1";
    if (place_ == Place::after_metadata_key) where = " as a value, allowed: text";
    return fail("has " + found + where);
  }

  Place place_ = Place::before;
  std::string name_, problem_;
  bool is_metadata_ = false, has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  int num_offsets_ = 0;
  std::set<std::string> names_, metadata_keys_;
  std::vector<SafetensorsEntry> entries_;
};

// The bytes between the offsets must be those of the shape, and all tensors together must tile the
// data.
void check_offsets(std::vector<SafetensorsEntry>& entries, std::int64_t data_bytes,
                   const std::string& origin) {
  const auto refuse = [&](const SafetensorsEntry& entry, const std::string& what) {
    throw UserError(origin + ": tensor " + in_quotes(entry.weight.name) + " " + what);
  };
  for (const SafetensorsEntry& entry : entries) {
    std::int64_t needed = 0;
    if (!count_elements(entry.weight.shape, needed) ||
        __builtin_mul_overflow(needed, find_type(entry.weight.type_name)->size_bytes, &needed))
      refuse(entry, "has the shape " + shape_to_string(entry.weight.shape) +
                        ", more bytes than can be addressed");
    const std::string offsets = concat("has data_offsets [", entry.begin, ", ", entry.end, "), ");
    if (entry.begin > entry.end) refuse(entry, offsets + "which run backwards");
    if (entry.end > data_bytes)
      refuse(entry, concat(offsets, "but the file has ", data_bytes,
                           " bytes of tensors; it is truncated or damaged"));
    if (entry.end - entry.begin != needed)
      refuse(entry, concat(offsets, entry.end - entry.begin, " bytes, but ",
                           shape_to_string(entry.weight.shape), " of ", entry.weight.type_name,
                           " takes ", needed));
  }
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::int64_t reached = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin < reached)
      refuse(entry, concat("begins at byte ", entry.begin,
                           " inside the tensor before it, which ends at ", reached));
    if (entry.begin > reached)
      refuse(entry, concat("begins at byte ", entry.begin, ", ", entry.begin - reached,
                           " bytes after the end of the tensor before it; holes are not allowed"));
    reached = entry.end;
  }
  if (reached != data_bytes)
    throw UserError(concat(origin, ": has ", data_bytes - reached,
                           " bytes behind its last tensor; it is damaged"));
}

std::string read_header(const InputFile& file) {
  const auto refuse = [&](const std::string& what) -> void {
    throw UserError(file.path() + ": is not a safetensors file: " + what);
  };
  if (file.size_bytes() < kLengthBytes)
    refuse(concat("it has ", file.size_bytes(), " bytes, and the length of the header alone is 8"));
  std::uint64_t length = 0;
  file.read_at(0, &length, kLengthBytes);
  if (length > static_cast<std::uint64_t>(kLongestHeader))
    refuse(concat("its header has ", length, " bytes, allowed: up to ", kLongestHeader));
  if (length > static_cast<std::uint64_t>(file.size_bytes() - kLengthBytes))
    refuse(concat("its header has ", length, " bytes, but only ", file.size_bytes() - kLengthBytes,
                  " follow; it is truncated or damaged"));
  std::string header(static_cast<std::size_t>(length), '\0');
  file.read_at(kLengthBytes, header.data(), static_cast<std::int64_t>(length));
  if (header.empty() || header[0] != '{') refuse("its header does not begin with '{'");
  return header;
}

std::string header_of(const std::vector<WeightInfo>& weights,
                      const SafetensorsWriter::Metadata& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  for (const auto& [key, value] : metadata) header[kMetadata][key] = value;
  std::int64_t offset = 0;
  for (const WeightInfo& weight : weights) {
    const std::int64_t end = offset + weight.num_elements() * size_of(weight.type);
    header[weight.name] = {
        {"dtype", weight.type_name}, {"shape", weight.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // tensors begin at a multiple of 8 bytes
  return text;
}

}  // namespace

std::vector<SafetensorsEntry> parse_safetensors_header(std::string_view header,
                                                       std::int64_t data_bytes,
                                                       const std::string& origin) {
  HeaderEvents events;
  if (!json::sax_parse(header.begin(), header.end(), &events))
    throw UserError(origin + ": " + events.problem());
  check_offsets(events.entries(), data_bytes, origin);
  return std::move(events.entries());
}

SafetensorsFile::SafetensorsFile(InputFile file) : file_(std::move(file)) {
  const std::string header = read_header(file_);
  const std::int64_t data_begin = kLengthBytes + static_cast<std::int64_t>(header.size());
  for (SafetensorsEntry& entry :
       parse_safetensors_header(header, file_.size_bytes() - data_begin, file_.path())) {
    weights_.push_back(std::move(entry.weight));
    offsets_.push_back(data_begin + entry.begin);
  }
}

void SafetensorsFile::read_rows(std::size_t index, std::int64_t begin, std::int64_t rows,
                                float* dst) {
  const WeightInfo& weight = weights_.at(index);
  OPENMOE_CHECK(begin >= 0 && rows >= 0 && begin + rows <= weight.num_rows(), "rows [", begin, ", ",
                begin + rows, ") of ", weight.name);
  if (weight.type == WeightType::other)
    throw UserError(file_.path() + ": tensor " + in_quotes(weight.name) + " has the dtype " +
                    weight.type_name + ", allowed: F32, F16, BF16");
  const std::int64_t size = size_of(weight.type);
  std::int64_t offset = offsets_[index] + begin * weight.num_columns() * size;
  std::int64_t left = rows * weight.num_columns();
  if (weight.type == WeightType::f32) {
    file_.read_at(offset, dst, left * size);
    return;
  }
  buffer_.resize(kBufferBytes);
  while (left > 0) {
    const std::int64_t count = std::min(left, kBufferBytes / size);
    file_.read_at(offset, buffer_.data(), count * size);
    decode_weights(weight.type, buffer_.data(), dst, count);
    dst += count;
    offset += count * size;
    left -= count;
  }
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<WeightInfo> weights,
                                     const Metadata& metadata)
    : file_(path), weights_(std::move(weights)), buffer_(kBufferBytes) {
  for (WeightInfo& weight : weights_) {
    const auto* type =
        std::find_if(std::begin(kTypes), std::end(kTypes),
                     [&](const TypeName& known) { return known.type == weight.type; });
    OPENMOE_CHECK(weight.type != WeightType::other, weight.name);
    weight.type_name = type->name;
  }
  const std::string header = header_of(weights_, metadata);
  const std::uint64_t length = header.size();
  file_.write(&length, kLengthBytes);
  file_.write(header.data(), static_cast<std::int64_t>(header.size()));
}

void SafetensorsWriter::append(const float* values, std::int64_t count) {
  while (current_ < weights_.size() && written_ == weights_[current_].num_elements()) {
    ++current_;
    written_ = 0;
  }
  OPENMOE_CHECK(current_ < weights_.size(), "no weight is left for ", count, " elements");
  const WeightInfo& weight = weights_[current_];
  OPENMOE_CHECK(written_ + count <= weight.num_elements(), count, " elements for ", weight.name);
  const std::int64_t size = size_of(weight.type);
  written_ += count;
  while (count > 0) {
    const std::int64_t part = std::min(count, kBufferBytes / size);
    const std::int64_t overflows = encode_weights(weight.type, values, buffer_.data(), part);
    if (overflows > 0)
      throw UserError(concat(file_.path(), ": tensor ", in_quotes(weight.name),
                             " has values too large for ", name_of(weight.type), "; write f32",
                             weight.type == WeightType::f16 ? " or bf16" : ""));
    file_.write(buffer_.data(), part * size);
    values += part;
    count -= part;
  }
}

void SafetensorsWriter::close() {
  while (current_ < weights_.size() && written_ == weights_[current_].num_elements()) {
    ++current_;
    written_ = 0;
  }
  OPENMOE_CHECK(current_ == weights_.size(), file_.path(), ": ", weights_[current_].name,
                " is not complete");
  file_.close();
}

}  // namespace openmoe
