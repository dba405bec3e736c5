#include "test/cuda_emulation/runtime/cudnn_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cuda_bf16.h"
#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/violation.h"

namespace cuda_emulation {
namespace {

using cudnn_frontend::DataType_t;
using cudnn_frontend::graph::AttentionNode;
using cudnn_frontend::graph::TensorPointer;

constexpr std::int64_t kForwardWorkspace = 16 << 10;

struct Sizes {
  std::int64_t sequences, heads, length, width;
};
Sizes sizes_of(const AttentionNode& node) {
  const std::vector<std::int64_t> dim = node.q->get_dim();
  return {dim[0], dim[1], dim[2], dim[3]};
}

std::int64_t round_up(std::int64_t value, std::int64_t to) {
  return (value + to - 1) / to * to;
}

float widen(std::uint16_t bits) {
  const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}
std::uint16_t narrow(double value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(static_cast<float>(value)));
}

template <typename T>
T* view(void* pointer) {
  return static_cast<T*>(device_memory::host_view(pointer));
}

// One sequence: `length` rows of (heads, width) values, each sequence a block in memory.
struct Sequence {
  std::int64_t index, offset, length;
};

std::vector<Sequence> read_sequences(const AttentionNode& node, const AttentionPointers& pointers,
                                     int device) {
  const Sizes size = sizes_of(node);
  const auto count = static_cast<std::size_t>(size.sequences);
  const TensorPointer lengths = node.options.seq_len_q, offsets = node.q->get_ragged_offset();
  void* const length_data = pointers.at(lengths->get_uid());
  void* const offset_data = pointers.at(offsets->get_uid());
  const bool wide = offsets->get_data_type() == DataType_t::INT64;
  device_memory::read_range(length_data, count * sizeof(std::int32_t), device,
                            "cuDNN attention, the lengths");
  device_memory::read_range(offset_data, (count + 1) * (wide ? 8 : 4), device,
                            "cuDNN attention, the ragged offsets");
  const auto offset = [&](std::int64_t i) {
    return wide ? view<std::int64_t>(offset_data)[i] : view<std::int32_t>(offset_data)[i];
  };
  const std::int64_t row = size.heads * size.width;
  std::vector<Sequence> sequences;
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < size.sequences; ++i) {
    const std::int64_t length = view<std::int32_t>(length_data)[i];
    if (length < 0 || length > size.length)
      violation(text("cuDNN attention: sequence ", i, " has ", length,
                     " positions in a plan for at most ", size.length));
    if (offset(i + 1) - offset(i) < length * row)
      violation(text("cuDNN attention: sequence ", i, " of ", length, " positions begins at ",
                     offset(i), " and the next at ", offset(i + 1), ", which is too near"));
    total += length;
    sequences.push_back({i, offset(i), length});
  }
  if (node.options.max_total_q && total > *node.options.max_total_q)
    violation(text("cuDNN attention: ", total, " positions, more than the stated ",
                   *node.options.max_total_q));
  return sequences;
}

// The values of one tensor in one sequence, (length, heads, width).
class Rows {
 public:
  Rows(const TensorPointer& tensor, const AttentionPointers& pointers, const Sequence& sequence,
       const Sizes& size)
      : name_("cuDNN attention, tensor " + tensor->get_name()),
        data_(static_cast<std::uint16_t*>(pointers.at(tensor->get_uid())) + sequence.offset),
        count_(sequence.length * size.heads * size.width) {}

  std::vector<float> read(int device) const {
    device_memory::read_range(data_, bytes(), device, name_.c_str());
    const std::uint16_t* const from = view<std::uint16_t>(data_);
    std::vector<float> values;
    for (std::int64_t i = 0; i < count_; ++i) values.push_back(widen(from[i]));
    return values;
  }
  void write(const std::vector<double>& values, int device) const {
    device_memory::write_range(data_, bytes(), device, name_.c_str());
    std::uint16_t* const to = view<std::uint16_t>(data_);
    for (std::int64_t i = 0; i < count_; ++i) to[i] = narrow(values[static_cast<std::size_t>(i)]);
  }

 private:
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(std::uint16_t); }

  std::string name_;
  std::uint16_t* data_;
  std::int64_t count_;
};

// Index of (position, head) in a Rows' values.
struct At {
  const Sizes& size;
  std::size_t operator()(std::int64_t t, std::int64_t h) const {
    return static_cast<std::size_t>((t * size.heads + h) * size.width);
  }
};

double dot(const std::vector<float>& a, std::size_t i, const std::vector<float>& b, std::size_t j,
           std::int64_t width) {
  double sum = 0.0;
  for (std::int64_t d = 0; d < width; ++d)
    sum += static_cast<double>(a[i + static_cast<std::size_t>(d)]) *
           b[j + static_cast<std::size_t>(d)];
  return sum;
}
void add(std::vector<double>& sum, std::size_t i, double factor, const std::vector<float>& x,
         std::size_t j, std::int64_t width) {
  for (std::int64_t d = 0; d < width; ++d)
    sum[i + static_cast<std::size_t>(d)] += factor * x[j + static_cast<std::size_t>(d)];
}

void forward(const AttentionNode& node, const AttentionPointers& pointers, const Sequence& sequence,
             int device) {
  const Sizes size = sizes_of(node);
  const At at{size};
  const auto rows = [&](const TensorPointer& tensor) {
    return Rows(tensor, pointers, sequence, size);
  };
  const std::vector<float> q = rows(node.q).read(device), k = rows(node.k).read(device),
                           v = rows(node.v).read(device);
  std::vector<double> o(q.size(), 0.0);
  float* const stats = view<float>(pointers.at(node.stats->get_uid()));
  const double scale = *node.options.scale;
  for (std::int64_t h = 0; h < size.heads; ++h)
    for (std::int64_t t = 0; t < sequence.length; ++t) {
      std::vector<double> logits;
      double largest = -std::numeric_limits<double>::infinity(), sum = 0.0;
      for (std::int64_t s = 0; s <= t; ++s) {
        logits.push_back(scale * dot(q, at(t, h), k, at(s, h), size.width));
        largest = std::max(largest, logits.back());
      }
      for (const double logit : logits) sum += std::exp(logit - largest);
      const double log_z = largest + std::log(sum);
      for (std::int64_t s = 0; s <= t; ++s)
        add(o, at(t, h), std::exp(logits[static_cast<std::size_t>(s)] - log_z), v, at(s, h),
            size.width);
      stats[(sequence.index * size.heads + h) * size.length + t] = static_cast<float>(log_z);
    }
  rows(node.o).write(o, device);
}

void backward(const AttentionNode& node, const AttentionPointers& pointers,
              const Sequence& sequence, int device) {
  const Sizes size = sizes_of(node);
  const At at{size};
  const auto rows = [&](const TensorPointer& tensor) {
    return Rows(tensor, pointers, sequence, size);
  };
  const std::vector<float> q = rows(node.q).read(device), k = rows(node.k).read(device),
                           v = rows(node.v).read(device), o = rows(node.o).read(device),
                           d_o = rows(node.d_o).read(device);
  std::vector<double> dq(q.size(), 0.0), dk(q.size(), 0.0), dv(q.size(), 0.0);
  const float* const stats = view<float>(pointers.at(node.stats->get_uid()));
  const double scale = *node.options.scale;
  for (std::int64_t h = 0; h < size.heads; ++h)
    for (std::int64_t t = 0; t < sequence.length; ++t) {
      const double log_z = stats[(sequence.index * size.heads + h) * size.length + t];
      const double delta = dot(d_o, at(t, h), o, at(t, h), size.width);
      for (std::int64_t s = 0; s <= t; ++s) {
        const double p = std::exp(scale * dot(q, at(t, h), k, at(s, h), size.width) - log_z);
        const double ds = p * (dot(d_o, at(t, h), v, at(s, h), size.width) - delta) * scale;
        add(dq, at(t, h), ds, k, at(s, h), size.width);
        add(dk, at(s, h), ds, q, at(t, h), size.width);
        add(dv, at(s, h), p, d_o, at(t, h), size.width);
      }
    }
  rows(node.dq).write(dq, device);
  rows(node.dk).write(dk, device);
  rows(node.dv).write(dv, device);
}

}  // namespace

std::int64_t attention_workspace_bytes(const AttentionNode& node) {
  if (!node.backward) return kForwardWorkspace;
  const Sizes size = sizes_of(node);
  const std::int64_t matrix = round_up(size.length, 64) * round_up(size.length, 128) * 2;
  return size.sequences * size.heads * (matrix + size.length * 4);
}

void run_attention(const AttentionNode& node, const AttentionPointers& pointers, void* workspace,
                   int device) {
  device_memory::write_range(workspace, static_cast<std::size_t>(attention_workspace_bytes(node)),
                             device, "cuDNN attention, the workspace");
  const Sizes size = sizes_of(node);
  const auto num_stats = static_cast<std::size_t>(size.sequences * size.heads * size.length);
  void* const stats = pointers.at(node.stats->get_uid());
  if (node.backward) {
    device_memory::read_range(stats, num_stats * sizeof(float), device,
                              "cuDNN attention, the statistics");
  } else {
    // What lies behind a sequence's end is anything.
    device_memory::write_range(stats, num_stats * sizeof(float), device,
                               "cuDNN attention, the statistics");
    float* const values = view<float>(stats);
    for (std::size_t i = 0; i < num_stats; ++i) values[i] = std::numeric_limits<float>::quiet_NaN();
  }
  for (const Sequence& sequence : read_sequences(node, pointers, device))
    if (sequence.length > 0) (node.backward ? backward : forward)(node, pointers, sequence, device);
}

}  // namespace cuda_emulation
