// Emulated cuDNN: what a graph of attention may be, and what its execution punishes.
#include <cudnn_frontend.h>

#include <cmath>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "test/cuda_emulation/support.h"
#include "test/support/catch.h"

using namespace cuda_emulation;
using namespace cuda_emulation::test;
using namespace cudnn_frontend;
using Catch::Matchers::Contains;
using graph::Graph;
using graph::Tensor_attributes;

namespace {

// Two sequences of at most 4 positions, one head of 8, in a tensor of 6 positions.
constexpr std::int64_t kSequences = 2, kLength = 4, kWidth = 8, kPositions = 6;
enum Uid : std::int64_t { q = 1, k, v, o, stats, lengths, offsets, d_o, dq, dk, dv };

// What the tests spoil.
struct Spoiled {
  DataType_t type = DataType_t::BFLOAT16, length_type = DataType_t::INT32,
             stats_type = DataType_t::FLOAT;
  std::int64_t width = kWidth, last_stride = 1, num_offsets = kSequences + 1, stats_stride = 1;
  bool padding_mask = true, deterministic = true, backward = false, stats_output = true;
};

std::shared_ptr<Tensor_attributes> index(Graph& graph, const char* name, Uid uid,
                                         std::int64_t count, DataType_t type) {
  return graph.tensor(Tensor_attributes()
                          .set_name(name)
                          .set_uid(uid)
                          .set_dim({count, 1, 1, 1})
                          .set_stride({1, 1, 1, 1})
                          .set_data_type(type));
}

struct Attention {
  explicit Attention(const Spoiled& s = {}) {
    graph.set_io_data_type(s.type)
        .set_intermediate_data_type(DataType_t::FLOAT)
        .set_compute_data_type(DataType_t::FLOAT);
    const auto length = index(graph, "lengths", lengths, kSequences, s.length_type);
    const auto offset = index(graph, "offsets", offsets, s.num_offsets, DataType_t::INT64);
    const std::vector<std::int64_t> dim{kSequences, 1, kLength, s.width};
    const std::vector<std::int64_t> stride{kLength * s.width, s.width, s.width, s.last_stride};
    const auto rows = [&](const char* name, Uid uid) {
      return graph.tensor(Tensor_attributes()
                              .set_name(name)
                              .set_uid(uid)
                              .set_dim(dim)
                              .set_stride(stride)
                              .set_ragged_offset(offset));
    };
    const auto result = [&](const std::shared_ptr<Tensor_attributes>& x, Uid uid) {
      x->set_output(true).set_uid(uid).set_dim(dim).set_stride(stride).set_ragged_offset(offset);
    };
    const auto statistics = [&](Tensor_attributes& x) {
      x.set_uid(stats)
          .set_dim({kSequences, 1, kLength, 1})
          .set_stride({kLength, kLength, s.stats_stride, 1})
          .set_data_type(s.stats_type);
    };
    const auto options = [&](auto attributes) {
      attributes.set_attn_scale(0.5f)
          .set_padding_mask(s.padding_mask)
          .set_seq_len_q(length)
          .set_seq_len_kv(length)
          .set_max_total_seq_len_q(kPositions)
          .set_diagonal_alignment(DiagonalAlignment_t::TOP_LEFT)
          .set_diagonal_band_right_bound(0);
      return attributes;
    };
    const auto x = rows("q", q), y = rows("k", k), z = rows("v", v);
    if (s.backward) {
      const auto out = rows("o", o), d_out = rows("d_o", d_o);
      Tensor_attributes log_z;
      statistics(log_z.set_name("stats"));
      const auto [gq, gk, gv] = graph.sdpa_backward(
          x, y, z, out, d_out, graph.tensor(log_z),
          options(graph::SDPA_backward_attributes().set_deterministic_algorithm(s.deterministic)));
      result(gq, dq);
      result(gk, dk);
      result(gv, dv);
    } else {
      const auto [out, log_z] =
          graph.sdpa(x, y, z, options(graph::SDPA_attributes().set_generate_stats(true)));
      result(out, o);
      statistics(*log_z);
      log_z->set_output(s.stats_output);
    }
    REQUIRE(detail::create_handle(&handle) == CUDNN_STATUS_SUCCESS);
    REQUIRE(detail::set_stream(handle, nullptr) == CUDNN_STATUS_SUCCESS);
  }
  ~Attention() { detail::destroy_handle(handle); }

  // The words of the first step that fails, or "".
  std::string build() {
    const std::function<error_object()> steps[] = {
        [&] { return graph.validate(); }, [&] { return graph.build_operation_graph(handle); },
        [&] { return graph.create_execution_plans({HeurMode_t::A}); },
        [&] { return graph.check_support(); }, [&] { return graph.build_plans(); }};
    for (const auto& step : steps)
      if (const error_object error = step(); error.is_bad()) return error.err_msg;
    return "";
  }

  Graph graph;
  cudnnHandle_t handle = nullptr;
};

std::string refusal(const Spoiled& spoiled) {
  return Attention(spoiled).build();
}

// Memory for a forward: lengths 3 and 2, with a gap between.
struct Memory {
  explicit Memory(std::int64_t workspace_bytes)
      : workspace(static_cast<std::size_t>(workspace_bytes)) {
    pointers = {{q, in.data()},          {k, in.data()},        {v, in.data()},
                {o, out.data()},         {stats, log_z.data()}, {lengths, length.data()},
                {offsets, offset.data()}};
  }
  DeviceBuffer<std::uint16_t> in{std::vector<std::uint16_t>(kPositions * kWidth, 0x3f80)};  // 1
  DeviceBuffer<std::uint16_t> out{std::vector<std::uint16_t>(kPositions * kWidth, 7)};
  DeviceBuffer<float> log_z{std::vector<float>(kSequences * kLength, 0.0f)};
  DeviceBuffer<std::int32_t> length{std::vector<std::int32_t>{3, 2}};
  DeviceBuffer<std::int64_t> offset{std::vector<std::int64_t>{0, 4 * kWidth, 6 * kWidth}};
  DeviceBuffer<char> workspace;
  std::unordered_map<std::int64_t, void*> pointers;
};

struct Ready : Attention, Memory {
  Ready() : Memory(prepare()) {}
  std::int64_t prepare() {
    REQUIRE(build() == "");
    std::int64_t bytes = 0;
    REQUIRE(graph.get_workspace_size(bytes).is_good());
    return bytes;
  }
  error_object run() { return graph.execute(handle, pointers, workspace.data()); }
  std::string violation() {
    error_object error;
    const std::string words = violation_of([&] { error = run(); });
    CHECK(error.is_good());
    return words;
  }
};

class ArchScope {
 public:
  explicit ArchScope(int arch) : before_(hardware()) {
    Hardware changed = before_;
    changed.arch = arch;
    set_hardware(changed);
  }
  ~ArchScope() { set_hardware(before_); }

 private:
  Hardware before_;
};

}  // namespace

TEST_CASE("cudnn: packed sequences; what is between them stays, what is behind is anything") {
  Ready ready;
  REQUIRE(ready.run().is_good());
  const auto out = ready.out.read();
  for (std::size_t position = 0; position < kPositions; ++position)
    CHECK(out[position * kWidth] == (position == 3 ? 7 : 0x3f80));  // a mean of ones
  const auto log_z = ready.log_z.read();
  for (std::size_t t = 0; t < kLength; ++t) {
    // Logits are 0.5 * 8.
    if (t < 3) CHECK(log_z[t] == Approx(4.0 + std::log(static_cast<double>(t + 1))));
    CHECK(std::isnan(log_z[kLength + t]) == (t >= 2));
  }
}

TEST_CASE("cudnn: graphs that are refused, and where") {
  CHECK(refusal({}) == "");
  CHECK(refusal({.backward = true}) == "");
  CHECK_THAT(refusal({.type = DataType_t::FLOAT}), Contains("is not bf16"));
  CHECK_THAT(refusal({.type = DataType_t::NOT_SET}), Contains("no data type"));
  CHECK_THAT(refusal({.length_type = DataType_t::INT64}), Contains("lengths: not (2, 1, 1, 1)"));
  CHECK_THAT(refusal({.stats_type = DataType_t::BFLOAT16}), Contains("must be an FP32 tensor"));
  CHECK_THAT(refusal({.width = 12}), Contains("multiple of 8"));
  CHECK_THAT(refusal({.width = 264}), Contains("less than or equal to 256"));
  CHECK_THAT(refusal({.last_stride = 2}), Contains("should be 1 for q"));
  CHECK_THAT(refusal({.num_offsets = kSequences}), Contains("offsets: not (3, 1, 1, 1)"));
  CHECK_THAT(refusal({.stats_stride = 2}), Contains("packed BHSD"));
  CHECK_THAT(refusal({.padding_mask = false}), Contains("only supported with padding mask"));
  CHECK_THAT(refusal({.stats_output = false}), Contains("virtual"));
  {
    const ArchScope ampere(80);
    CHECK(refusal({}) == "");
    CHECK(refusal({.deterministic = false, .backward = true}) == "");
    CHECK_THAT(refusal({.backward = true}), Contains("Deterministic algorithm"));
    CHECK_THAT(refusal({.width = 136, .deterministic = false, .backward = true}),
               Contains("hidden_dim"));
  }
  const ArchScope turing(75);
  CHECK_THAT(refusal({}), Contains("requires Ampere"));
}

TEST_CASE("cudnn: steps out of order and empty heuristics") {
  Attention attention;
  CHECK(attention.graph.build_operation_graph(attention.handle).is_bad());
  REQUIRE(attention.graph.validate().is_good());
  CHECK(attention.graph.build_operation_graph(nullptr).is_bad());
  CHECK(attention.graph.build_plans().is_bad());
  std::int64_t bytes = 0;
  CHECK(attention.graph.get_workspace_size(bytes).is_bad());
  std::unordered_map<std::int64_t, void*> nothing;
  CHECK(attention.graph.execute(attention.handle, nothing, nullptr).is_bad());
  set_cudnn({.present = true, .version = 91900, .refusal = "no engine"});
  CHECK(attention.build() == "no engine");
  set_cudnn({});
  CHECK(attention.build() == "");
}

TEST_CASE("cudnn: pointers that are missing, misaligned or of the host") {
  Ready ready;
  const auto with = [&](std::int64_t uid, void* pointer) {
    auto changed = ready.pointers;
    changed[uid] = pointer;
    return changed;
  };
  auto missing = ready.pointers;
  missing.erase(v);
  CHECK_THAT(ready.graph.execute(ready.handle, missing, ready.workspace.data()).err_msg,
             Contains("Uid 3 does not exist"));
  auto misaligned = with(q, ready.in.data() + 1);
  CHECK_THAT(ready.graph.execute(ready.handle, misaligned, ready.workspace.data()).err_msg,
             Contains("q: the pointer is not aligned"));
  alignas(16) static std::uint16_t host[kPositions * kWidth];
  auto of_host = with(o, host);
  CHECK_THAT(violation_of(
                 [&] { (void)ready.graph.execute(ready.handle, of_host, ready.workspace.data()); }),
             Contains("a host pointer"));
}

TEST_CASE("cudnn: sequences that cannot be") {
  {
    Ready ready;
    ready.length.write({5, 1});
    CHECK_THAT(ready.violation(), Contains("sequence 0 has 5 positions in a plan for at most 4"));
  }
  {
    Ready ready;
    ready.offset.write({0, 2 * kWidth, 6 * kWidth});
    CHECK_THAT(ready.violation(), Contains("which is too near"));
  }
  {
    Ready ready;
    ready.length.write({4, 3});
    ready.offset.write({0, 4 * kWidth, 7 * kWidth});
    CHECK_THAT(ready.violation(), Contains("more than the stated 6"));
  }
  Ready ready;
  ready.offset.write({0, 5 * kWidth, 7 * kWidth});
  CHECK_THAT(ready.violation(), Contains("tensor q"));  // behind its memory
}

TEST_CASE("cudnn: uninitialised operands, a small workspace, a stream without order",
          "[accesses]") {
  {
    Ready ready;
    const DeviceBuffer<std::uint16_t> fresh(kPositions * kWidth);
    ready.pointers[k] = fresh.data();
    CHECK_THAT(ready.violation(), Contains("nothing has written"));
  }
  {
    Ready ready;
    const DeviceBuffer<char> small(16);
    CHECK_THAT(violation_of(
                   [&] { (void)ready.graph.execute(ready.handle, ready.pointers, small.data()); }),
               Contains("workspace"));
  }
  Ready ready;
  cudaStream_t first = nullptr, second = nullptr;
  require(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
  require(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
  require(cudaMemsetAsync(ready.in.data(), 0, ready.in.size() * 2, first));
  REQUIRE(detail::set_stream(ready.handle, second) == CUDNN_STATUS_SUCCESS);
  CHECK_THAT(ready.violation(), Contains("another stream wrote"));
  require(cudaDeviceSynchronize());
  CHECK(ready.violation() == "");
  REQUIRE(detail::set_stream(ready.handle, nullptr) == CUDNN_STATUS_SUCCESS);
  require(cudaStreamDestroy(first));
  require(cudaStreamDestroy(second));
}
