// Attention through cuDNN on the emulated device: numbers, what is chosen, and when it is refused.
// The real cuDNN: cudnn_engines_test.cpp.
#include "core/base/error.h"
#include "core/config/enum_names.h"
#include "test/cuda/attention_runs.h"

using namespace openmoe;
using Catch::Matchers::Contains;
using openmoe::test::AttentionCase;
using openmoe::test::OpRun;
using openmoe::test::packed_segments;
using openmoe::test::Storage;

namespace {

constexpr const char* kVersion = "cuDNN 9.19.0";

// Against the CPU backend, all that cuDNN may be given by cuDNN.
void check_cudnn(const AttentionCase& c, const std::vector<std::int32_t>& segments) {
  INFO("B " << c.B << ", T " << c.T << ", H " << c.H << ", Dh " << c.Dh);
  test::compare_backends(
      [&](OpRun& run) {
        const bool on_device = run.ops().device() == Device::cuda;
        const std::string chosen = test::choose(run, AttentionKind::cudnn, c);
        if (on_device) CHECK(chosen == kVersion);
        const std::int64_t plans = cuda_emulation::num_attention_plans();
        test::run_attention(run, c, segments, Storage::bf16);
        CHECK(cuda_emulation::num_attention_plans() == plans);  // those of choose
      },
      test::attention_tolerance(Storage::bf16, c.T));
}

// Rows of one text each, `real` positions of it.
std::vector<std::int32_t> plain_rows(const std::vector<std::int64_t>& real, std::int64_t T) {
  std::vector<std::int32_t> ids;
  for (const std::int64_t length : real)
    for (std::int64_t t = 0; t < T; ++t) ids.push_back(t < length ? 1 : 0);
  return ids;
}

class CudnnScope {
 public:
  explicit CudnnScope(const cuda_emulation::Cudnn& cudnn) { cuda_emulation::set_cudnn(cudnn); }
  ~CudnnScope() { cuda_emulation::set_cudnn({}); }
};
class ArchScope {
 public:
  explicit ArchScope(int arch) : before_(cuda_emulation::hardware()) {
    auto hardware = before_;
    hardware.arch = arch;
    cuda_emulation::set_hardware(hardware);
  }
  ~ArchScope() { cuda_emulation::set_hardware(before_); }

 private:
  cuda_emulation::Hardware before_;
};

// The words of the UserError that demanding cuDNN causes.
std::string demand(const AttentionCase& c, Storage storage = Storage::bf16) {
  const auto ops = make_cuda_ops(0);
  OpRun run(*ops);
  try {
    test::choose(run, AttentionKind::cudnn, c, storage);
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}
std::string automatic(const AttentionCase& c, Storage storage = Storage::bf16) {
  const auto ops = make_cuda_ops(0);
  OpRun run(*ops);
  return test::choose(run, AttentionKind::automatic, c, storage);
}

}  // namespace

TEST_CASE("cudnn attention: rows of one text, full, padded and empty", "[cuda]") {
  check_cudnn({1, 1, 2, 8}, {1});
  check_cudnn({1, 65, 2, 64}, plain_rows({65}, 65));
  check_cudnn({4, 33, 3, 16}, plain_rows({33, 20, 0, 1}, 33));
  check_cudnn({2, 40, 1, 136}, plain_rows({40, 7}, 40));
}

TEST_CASE("cudnn attention: packed rows, as many as fit", "[cuda]") {
  // T 520: two sequences for each row. Three, one and none; then two.
  std::vector<std::int32_t> ids(3 * 520, 0);
  for (std::size_t t = 0; t < 520; ++t) ids[t] = t < 100 ? 1 : t < 300 ? 2 : 5;
  for (std::size_t t = 3; t < 500; ++t) ids[520 + t] = 4;
  check_cudnn({3, 520, 1, 8}, ids);
  for (std::size_t t = 0; t < 510; ++t) ids[1040 + t] = t < 1 ? 2 : 3;
  check_cudnn({3, 520, 1, 8}, ids);
}

TEST_CASE("cudnn attention: rows it is not given are computed by the own kernels", "[cuda]") {
  // Five sequences, one for each row. The first row returns to a segment, the second falls, the
  // third has one, the others have two each.
  const std::int64_t T = 40;
  std::vector<std::int32_t> ids;
  const auto add = [&](auto id_at) {
    for (std::int64_t t = 0; t < T; ++t) ids.push_back(static_cast<std::int32_t>(id_at(t)));
  };
  add([](std::int64_t t) { return t / 10 == 1 ? 2 : 1; });
  add([](std::int64_t t) { return t < 10 ? 3 : 1; });
  add([](std::int64_t t) { return t < 30 ? 7 : 0; });
  add([](std::int64_t t) { return t < 30 ? 1 : 2; });
  add([](std::int64_t t) { return t < 20 ? 1 : 2; });
  for (const std::int64_t rows : {1, 3, 4, 5}) {
    // Empty rows leave room for what the first ones must not be given.
    std::vector<std::int32_t> some(ids.begin(), ids.begin() + rows * T);
    some.resize(static_cast<std::size_t>(5 * T), 0);
    check_cudnn({5, T, 2, 16}, some);
  }
  check_cudnn({3, 70, 2, 32}, packed_segments(3, 70));
  check_cudnn({2, 70, 1, 136}, packed_segments(2, 70));  // own kernels of wide heads
}

TEST_CASE("cudnn attention: a plan is built once for each shape, direction and scale", "[cuda]") {
  const auto ops = make_cuda_ops(0);
  const std::int64_t before = cuda_emulation::num_attention_plans();
  const auto built = [&] { return cuda_emulation::num_attention_plans() - before; };
  for (int repeat = 0; repeat < 3; ++repeat) {
    OpRun run(*ops);
    test::run_attention(run, {2, 24, 2, 16}, plain_rows({24, 9}, 24), Storage::bf16);
    CHECK(built() == 2);
  }
  OpRun run(*ops);
  test::run_attention(run, {1, 24, 2, 16}, plain_rows({24}, 24), Storage::bf16);
  CHECK(built() == 4);
}

TEST_CASE("cudnn attention: auto says what it takes and why", "[cuda]") {
  const AttentionCase small{2, 64, 2, 64};
  CHECK(automatic(small) == kVersion);
  CHECK_THAT(automatic(small, Storage::f32),
             Contains("builtin: cuDNN's attention is for bf16, and run.compute_type is f32"));
  CHECK_THAT(automatic({2, 64, 2, 60}), Contains("builtin: ") && Contains("model.head_dim is 60"));
  // The backward's matrices of lengths, 10 sequences of 24 heads.
  CHECK_THAT(automatic({2, 2048, 24, 128}),
             Contains("forward cuDNN 9.19.0, backward builtin (") && Contains("MiB of workspace"));
  {
    const ArchScope ampere(80);
    CHECK_THAT(automatic(small), Contains("forward cuDNN 9.19.0, backward builtin (Determin"));
  }
  const CudnnScope refusing({.present = true, .version = 91900, .refusal = "no engine\ntoday"});
  CHECK(automatic(small) == "builtin: no engine today");
}

TEST_CASE("cudnn attention: where cuDNN refuses, auto computes the same without it", "[cuda]") {
  const AttentionCase c{2, 33, 2, 16};
  const auto compare = [&] {
    test::compare_backends(
        [&](OpRun& run) {
          test::choose(run, AttentionKind::automatic, c);
          test::run_attention(run, c, packed_segments(2, 33), Storage::bf16);
        },
        test::attention_tolerance(Storage::bf16, c.T));
  };
  const std::int64_t before = cuda_emulation::num_attention_plans();
  {
    const CudnnScope refusing({.present = true, .version = 91900, .refusal = "no engine"});
    compare();
    const CudnnScope missing({.present = false, .version = 91900, .refusal = ""});
    compare();
    CHECK(cuda_emulation::num_attention_plans() == before);
  }
  const ArchScope ampere(80);  // forward only
  compare();
  CHECK(cuda_emulation::num_attention_plans() == before + 1);
}

TEST_CASE("cudnn attention: demanded in vain it is one clear error", "[cuda]") {
  const AttentionCase small{2, 64, 2, 64};
  CHECK(demand(small) == "");
  CHECK_THAT(demand(small, Storage::f32),
             Contains("run.attention: found cudnn, which cannot be had forward: ") &&
                 Contains("run.compute_type is f32") && Contains("run.attention=auto"));
  CHECK_THAT(demand({2, 64, 2, 264}), Contains("model.head_dim: found 264"));
  {
    const ArchScope ampere(80);
    CHECK_THAT(demand(small), Contains("cannot be had backward: Deterministic algorithm"));
  }
  {
    const CudnnScope refusing({.present = true, .version = 91900, .refusal = "no engine"});
    CHECK_THAT(demand(small), Contains("cannot be had forward: no engine"));
  }
  {
    const CudnnScope old({.present = true, .version = 90501, .refusal = ""});
    CHECK_THAT(demand(small), Contains("cuDNN 9.5.1 is installed") && Contains("9.6 or newer"));
  }
  const CudnnScope missing({.present = false, .version = 91900, .refusal = ""});
  CHECK_THAT(demand(small), Contains("libcudnn.so.9 cannot be loaded"));
}

TEST_CASE("cudnn attention: the CPU backend refuses it and has its own", "[cuda]") {
  const auto cpu = make_cpu_ops();
  const AttentionCall call{.shape = {1, 8, 1, 8}, .dtype = DType::bf16, .backward = true};
  CHECK(cpu->choose_attention(AttentionKind::automatic, call) == "builtin");
  CHECK(cpu->choose_attention(AttentionKind::builtin, call) == "builtin");
  CHECK_THROWS_WITH(
      cpu->choose_attention(AttentionKind::cudnn, call),
      Contains("run.attention: found cudnn, allowed with --device cpu: auto, builtin"));
}

TEST_CASE("cudnn attention: demanded, then called with sizes it has not", "[cuda]") {
  const auto ops = make_cuda_ops(0);
  OpRun run(*ops);
  test::choose(run, AttentionKind::cudnn, {1, 8, 1, 8});
  CHECK_THROWS_AS(test::run_attention(run, {1, 8, 1, 12}, plain_rows({8}, 8), Storage::bf16),
                  RuntimeFault);
}
