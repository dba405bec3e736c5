#include <array>

#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

TEST_CASE("copied rows: widths of every word, unaligned, more stretches than one launch takes",
          "[cuda]") {
  for (const std::int64_t width : {1, 2, 4, 7})
    for (const bool misaligned : {false, true}) {
      INFO("width " << width << ", misaligned " << misaligned);
      test::compare_backends(
          [=](OpRun& run) {
            std::vector<RowStretch> stretches = {{5, 0, 3}, {0, 9, 0}, {0, 4, 5}};
            for (std::int64_t i = 0; i < 130; ++i)
              stretches.push_back({10 + 2 * i, 139 - i, i % 2});
            const Tensor src = run.normal("src", {140, width}, 1.0, misaligned),
                         dst = run.poisoned("dst", {300, width});
            run.ops().copy_rows(dst, src, stretches);
            run.ops().copy_rows(dst, run.normal("nothing", {0, width}), {});
          },
          0.0);
    }
}

TEST_CASE("leading axes are swapped, and pieces are added in their order", "[cuda]") {
  struct Case {
    std::int64_t A, B, W;
  };
  for (const Case c : {Case{3, 2, 4}, Case{7, 5, 3}, Case{1, 6, 8}, Case{0, 3, 2}, Case{300, 3, 1}})
    test::compare_backends(
        [=](OpRun& run) {
          const Tensor src = run.normal("src", {c.A, c.B, c.W}),
                       dst = run.poisoned("dst", {c.B, c.A, c.W});
          run.ops().swap_leading_axes(dst, src);
          const std::int64_t n = c.A * c.W;
          const Tensor sum = run.poisoned("sum", {n}), pieces = run.normal("pieces", {c.B, n}, 1e3);
          run.ops().sum_pieces(sum, pieces);
        },
        0.0);
}

TEST_CASE("downloads hold what was there before the optimizer's next step", "[cuda]") {
  const auto cuda = make_cuda_ops(0);
  OpRun run(*cuda);
  const Tensor w = run.normal("w", {1, 4, 8}), g = run.normal("g", {1, 4, 8}),
               row = run.poisoned("row", {1, 4}), col = run.poisoned("col", {1, 8});
  const std::vector<float> before = run.read_floats(w);
  const std::int64_t bytes = w.size_bytes();
  void* const room = cuda->allocate_host_bytes(bytes);
  const Tensor copy{room, DType::f32, Device::host, w.shape};
  cuda->download(copy, w);
  cuda->adafactor_factored(w, row, col, g, {.learning_rate = 0.1f});
  CHECK(run.read_floats(w) != before);
  cuda->finish_downloads();
  CHECK(cuda->downloads_are_done());
  CHECK(std::equal(before.begin(), before.end(), copy.as<float>()));
  cuda->free_host_bytes(room, bytes);
}

TEST_CASE("uploads from memory that the caller changes at once arrive as they were", "[cuda]") {
  const auto cuda = make_cuda_ops(0);
  OpRun run(*cuda);
  std::vector<Tensor> tensors;
  std::vector<float> values(16);
  for (int i = 0; i < 9; ++i) {  // more than there are places on the way
    const std::string name = "tensor " + std::to_string(i);
    std::fill(values.begin(), values.end(), static_cast<float>(i));
    tensors.push_back(run.floats(name, {16}, values));
    std::fill(values.begin(), values.end(), -1.0f);
  }
  for (std::size_t i = 0; i < tensors.size(); ++i)
    CHECK(run.read_floats(tensors[i]) == std::vector<float>(16, static_cast<float>(i)));
  // Larger than any of these places.
  const std::vector<float> large(300000, 2.5f);
  CHECK(run.read_floats(run.floats("large", {300000}, large)) == large);
}
