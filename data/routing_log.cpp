#include "data/routing_log.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <new>
#include <stdexcept>
#include <type_traits>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/durable_files.h"
#include "data/h5_file.h"
#include "data/routing_log_json.h"

namespace openmoe {
namespace {

constexpr const char* kFormat = "openmoe-routing-log";
constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kChunkRows = 16384;
constexpr int kDeflate = 1;  // a training step waits for it; 4 is hardly smaller
// Deflate, the strongest filter in use, makes at most 1032 bytes of one.
constexpr std::int64_t kMostUnpacked = 1100;
constexpr std::int64_t kMaxLayer = 1000000;
constexpr std::int64_t kMaxLength = std::int64_t{1} << 30;

[[noreturn]] void fail(const std::string& path, const std::string& problem) {
  throw UserError(path + ": " + problem + "; the format is described in data/routing_log.h");
}

bool is_integer(const std::string& type) {
  return type == "i8" || type == "i16" || type == "i32" || type == "i64" || type == "u8" ||
         type == "u16" || type == "u32" || type == "u64";
}

// That a dataset's declared size is that of bytes which the file holds, before memory is taken for
// it.
void check_stored(const H5File& file, const std::string& name, const H5File::Info& info) {
  const auto file_bytes = static_cast<std::int64_t>(std::filesystem::file_size(file.path()));
  const std::int64_t bytes = std::min(info.stored_bytes, file_bytes);
  std::int64_t room = bytes * kMostUnpacked / std::max<std::int64_t>(1, info.element_bytes);
  for (int axis = 0; axis < info.shape.rank; ++axis) {
    const std::int64_t size = info.shape[axis];
    if (size < 0 || size > room)
      fail(file.path(), concat("dataset ", name, " declares the shape ", info.shape.to_string(),
                               ", but only ", bytes, " bytes of it are stored; write all of it"));
    room /= std::max<std::int64_t>(1, size);
  }
}

// A dataset of integers with `rows` rows (-1: any) and `width` columns (0: one axis), as i64.
std::vector<std::int64_t> read_integers(const H5File& file, const std::string& name,
                                        std::int64_t rows, std::int64_t width) {
  if (!file.exists(name)) fail(file.path(), "has no dataset " + name);
  const H5File::Info info = file.info(name);
  const bool fits = info.shape.rank == (width > 0 ? 2 : 1) && (rows < 0 || info.shape[0] == rows) &&
                    (width == 0 || info.shape[1] == width);
  if (!fits || !is_integer(info.type))
    fail(file.path(),
         concat("dataset ", name, " is ", info.type, " ", info.shape.to_string(),
                ", allowed: integers (", rows < 0 ? std::string("any") : std::to_string(rows),
                width > 0 ? concat(", ", width) : std::string(), ")"));
  check_stored(file, name, info);
  std::vector<std::int64_t> values(static_cast<std::size_t>(info.shape.num_elements()));
  if (!values.empty()) file.read_raw(name, "i64", 0, info.shape[0], values.data());
  return values;
}

// Values that T cannot hold become one that no check of a trace lets pass.
template <typename T>
std::vector<T> narrowed(const std::vector<std::int64_t>& values) {
  constexpr T kRefused = std::is_signed_v<T> ? static_cast<T>(-1) : std::numeric_limits<T>::max();
  std::vector<T> result;
  result.reserve(values.size());
  for (const std::int64_t value : values)
    result.push_back(value < 0 || value > std::numeric_limits<T>::max() ? kRefused
                                                                        : static_cast<T>(value));
  return result;
}

std::vector<std::string> read_texts(const H5File& file, const std::string& name) {
  if (!file.exists(name)) fail(file.path(), "has no dataset " + name);
  const H5File::Info info = file.info(name);
  if (info.type != "string" || info.shape.rank != 1)
    fail(file.path(), concat("dataset ", name, " is ", info.type, " ", info.shape.to_string(),
                             ", allowed: strings (any)"));
  check_stored(file, name, info);
  return file.read_strings(name);
}

std::int64_t read_count(const H5File& file, const std::string& name, std::int64_t otherwise) {
  if (!file.has_attribute("", name)) {
    if (otherwise < 0) fail(file.path(), "has no attribute " + name);
    return otherwise;
  }
  return file.int_attribute("", name);
}

void read_documents(const H5File& file, RoutingTrace& trace) {
  if (!file.exists("document_ids")) {
    documents_of_sequences(trace);
    return;
  }
  trace.document =
      narrowed<std::int32_t>(read_integers(file, "document_ids", trace.num_tokens(), 0));
  const auto sources = narrowed<std::int32_t>(read_integers(file, "document_sources", -1, 0));
  const auto tags = read_texts(file, "document_tags");
  if (tags.size() != sources.size())
    fail(file.path(), concat(tags.size(), " document_tags for ", sources.size(),
                             " document_sources, allowed: as many"));
  for (std::size_t d = 0; d < tags.size(); ++d) trace.documents.push_back({sources[d], tags[d]});
}

void read_layers(const H5File& file, RoutingTrace& trace) {
  if (!file.exists("layers")) fail(file.path(), "has no group layers");
  for (const std::string& name : file.children("layers")) {
    if (name.empty() || name.size() > 9 ||
        name.find_first_not_of("0123456789") != std::string::npos)
      fail(file.path(), "group layers/" + name + ", allowed: names that are numbers of layers");
    LayerTrace layer;
    layer.layer = std::stoll(name);
    if (layer.layer > kMaxLayer)
      fail(file.path(), concat("group layers/", name, ", allowed: 0 to ", kMaxLayer));
    const std::string group = "layers/" + name;
    layer.choice = narrowed<std::uint16_t>(
        read_integers(file, group + "/choices", trace.num_tokens(), trace.top_k));
    if (file.exists(group + "/gates")) {
      const H5File::Info info = file.info(group + "/gates");
      if (!(info.shape == Shape{trace.num_tokens(), trace.top_k}) || info.type[0] != 'f')
        fail(file.path(),
             concat("dataset ", group, "/gates is ", info.type, " ", info.shape.to_string(),
                    ", allowed: floats (", trace.num_tokens(), ", ", trace.top_k, ")"));
      check_stored(file, group + "/gates", info);
      layer.gate.resize(layer.choice.size());
      file.read(group + "/gates", host_view(layer.gate.data(), info.shape));
    }
    trace.layers.push_back(std::move(layer));
  }
  std::sort(trace.layers.begin(), trace.layers.end(),
            [](const LayerTrace& a, const LayerTrace& b) { return a.layer < b.layer; });
}

void read_favourites(const H5File& file, RoutingLog& log) {
  if (!file.exists("favourites")) return;
  log.favourites.ids = narrowed<std::int32_t>(read_integers(file, "favourites/ids", -1, 0));
  if (!std::is_sorted(log.favourites.ids.begin(), log.favourites.ids.end()))
    fail(file.path(), "favourites/ids do not rise");
  const auto count = static_cast<std::int64_t>(log.favourites.ids.size());
  const auto layers = static_cast<std::int64_t>(log.trace.layers.size());
  if (count == 0) return;
  const auto experts = read_integers(file, "favourites/experts", layers, count);
  for (std::int64_t l = 0; l < layers; ++l) {
    log.favourites.experts.emplace_back();
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t expert = experts[static_cast<std::size_t>(l * count + i)];
      if (expert < -1 || expert >= log.trace.num_experts)
        fail(file.path(), concat("favourites/experts: found ", expert, ", allowed: -1 to ",
                                 log.trace.num_experts - 1));
      log.favourites.experts.back().push_back(static_cast<std::int32_t>(expert));
    }
  }
}

RoutingLog read_hdf5(const std::string& path) {
  H5File file = [&] {
    try {
      return H5File(path, H5File::Mode::read);
    } catch (const RuntimeFault& error) {
      throw UserError(path + ": cannot be read as HDF5: " + error.what());
    }
  }();
  if (!file.has_attribute("", "format") || file.string_attribute("", "format") != kFormat)
    fail(path, concat("is HDF5, but its attribute format is not \"", kFormat, "\""));
  if (const std::int64_t version = read_count(file, "format_version", -1); version != kVersion)
    fail(path, concat("format_version ", version, ", allowed: ", kVersion));
  RoutingLog log;
  RoutingTrace& trace = log.trace;
  trace.num_experts = read_count(file, "num_experts", -1);
  trace.top_k = read_count(file, "top_k", -1);
  trace.check_num_experts(path);
  trace.token_ids = narrowed<std::int32_t>(read_integers(file, "token_ids", -1, 0));
  trace.sequence_offsets = read_integers(file, "sequence_offsets", -1, 0);
  trace.sequence_sources = narrowed<std::int32_t>(read_integers(file, "sequence_sources", -1, 0));
  trace.sources = read_texts(file, "sources");
  trace.sequence_length = read_count(file, "sequence_length", trace.longest_sequence());
  check_routing_log(log, path, false);
  read_documents(file, trace);
  read_layers(file, trace);
  read_favourites(file, log);
  if (file.exists("pieces")) log.pieces = read_texts(file, "pieces");
  if (file.has_attribute("", "name")) log.name = file.string_attribute("", "name");
  if (file.has_attribute("", "step")) {
    log.step = read_count(file, "step", 0);
    if (log.step < 0) fail(path, concat("step ", log.step, ", allowed: 0 or more"));
  }
  return log;
}

}  // namespace

void documents_of_sequences(RoutingTrace& trace) {
  for (std::int64_t s = 0; s < trace.num_sequences(); ++s) {
    const auto at = static_cast<std::size_t>(s);
    trace.documents.push_back({trace.sequence_sources[at], ""});
    for (std::int64_t n = trace.sequence_offsets[at]; n < trace.sequence_offsets[at + 1]; ++n)
      trace.document.push_back(static_cast<std::int32_t>(s));
  }
}

void check_routing_log(const RoutingLog& log, const std::string& path, bool whole) {
  const RoutingTrace& trace = log.trace;
  if (whole) {
    if (trace.sequence_length > kMaxLength)
      fail(path,
           concat("sequence_length ", trace.sequence_length, ", allowed: the longest sequence, ",
                  trace.longest_sequence(), ", to ", kMaxLength));
    trace.check(path);
    return;
  }
  // What the sizes of everything else follow from.
  if (trace.top_k < 1 || trace.top_k > 256)
    fail(path, concat("top_k ", trace.top_k, ", allowed: 1 to 256"));
  const auto& offsets = trace.sequence_offsets;
  if (offsets.size() != trace.sequence_sources.size() + 1)
    fail(path, concat(offsets.size(), " sequence_offsets for ", trace.sequence_sources.size(),
                      " sequence_sources, allowed: one more"));
  if (offsets.front() != 0 || offsets.back() != trace.num_tokens() ||
      !std::is_sorted(offsets.begin(), offsets.end()))
    fail(path, concat("sequence_offsets do not rise from 0 to the number of tokens, ",
                      trace.num_tokens()));
}

RoutingLog read_routing_log(const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) throw UserError(path + ": is not a file");
  const std::string ending = std::filesystem::path(path).extension();
  try {
    RoutingLog log =
        ending == ".h5" || ending == ".hdf5" ? read_hdf5(path) : read_routing_json(path);
    check_routing_log(log, path, true);
    return log;
  } catch (const RuntimeFault& fault) {
    // A group where a dataset belongs, a number where a text belongs: what the library says.
    fail(path, concat("cannot be read as a routing log: ", fault.what()));
  } catch (const std::bad_alloc&) {
    throw UserError(path + ": does not fit into memory; write fewer sequences or layers to a log");
  } catch (const std::length_error&) {
    throw UserError(path + ": does not fit into memory; write fewer sequences or layers to a log");
  }
}

void write_routing_log(const std::string& path, const RoutingLog& log) {
  const RoutingTrace& trace = log.trace;
  const std::string part = path + ".tmp";
  {
    H5File file(part, H5File::Mode::create);
    file.set_attribute("", "format", std::string(kFormat));
    file.set_attribute("", "format_version", kVersion);
    file.set_attribute("", "num_experts", trace.num_experts);
    file.set_attribute("", "top_k", trace.top_k);
    file.set_attribute("", "sequence_length", trace.sequence_length);
    file.set_attribute("", "name", log.name);
    if (log.step >= 0) file.set_attribute("", "step", log.step);
    const auto layout = [](std::int64_t rows) {
      return H5Layout{std::clamp<std::int64_t>(rows, 1, kChunkRows), kDeflate};
    };
    const auto write = [&](const std::string& name, const char* type, const auto& values,
                           std::int64_t width) {
      const auto rows = static_cast<std::int64_t>(values.size()) / std::max<std::int64_t>(1, width);
      file.write_raw(name, type, width > 0 ? Shape{rows, width} : Shape{rows}, values.data(),
                     layout(rows));
    };
    std::vector<std::int32_t> sources;
    std::vector<std::string> tags;
    for (const DocumentOrigin& origin : trace.documents) {
      sources.push_back(origin.source);
      tags.push_back(origin.tag);
    }
    write("token_ids", "i32", trace.token_ids, 0);
    write("sequence_offsets", "i64", trace.sequence_offsets, 0);
    write("sequence_sources", "i32", trace.sequence_sources, 0);
    file.write_strings("sources", trace.sources);
    write("document_ids", "i32", trace.document, 0);
    write("document_sources", "i32", sources, 0);
    file.write_strings("document_tags", tags);
    if (!log.pieces.empty()) file.write_strings("pieces", log.pieces);
    for (const LayerTrace& layer : trace.layers) {
      const std::string group = "layers/" + std::to_string(layer.layer);
      file.create_group(group);
      write(group + "/choices", "u16", layer.choice, trace.top_k);
      if (!layer.gate.empty()) write(group + "/gates", "f32", layer.gate, trace.top_k);
    }
    if (!log.favourites.ids.empty()) {
      std::vector<std::int32_t> experts;
      for (const auto& layer : log.favourites.experts)
        experts.insert(experts.end(), layer.begin(), layer.end());
      file.create_group("favourites");
      write("favourites/ids", "i32", log.favourites.ids, 0);
      write("favourites/experts", "i32", experts,
            static_cast<std::int64_t>(log.favourites.ids.size()));
    }
    file.close();
  }
  publish_file(part, path);
}

}  // namespace openmoe
