#include "data/h5_file.h"

#include <cmath>
#include <filesystem>
#include <numeric>

#include "core/base/error.h"
#include "test/support/catch.h"
#include "test/support/scratch.h"

namespace openmoe {
namespace {

using test::Scratch;

TEST_CASE("h5: tensors come back, whole and by rows, with and without compression") {
  const Scratch scratch;
  const std::string path = scratch.path("a.h5");
  std::vector<float> values(3 * 5 * 2);
  std::iota(values.begin(), values.end(), -4.5f);
  const std::vector<H5Layout> layouts = {{}, {2, 0}, {2, 6}};
  {
    H5File file(path, H5File::Mode::create);
    for (std::size_t i = 0; i < layouts.size(); ++i)
      file.write("deep/group/x" + std::to_string(i), host_view(values.data(), {3, 5, 2}),
                 layouts[i]);
    file.close();
  }
  const H5File file(path, H5File::Mode::read);
  CHECK(file.children("deep") == std::vector<std::string>{"group"});
  CHECK(file.children("deep/group") == std::vector<std::string>{"x0", "x1", "x2"});
  for (std::size_t i = 0; i < layouts.size(); ++i) {
    const std::string name = "deep/group/x" + std::to_string(i);
    std::vector<float> whole(values.size());
    file.read(name, host_view(whole.data(), {3, 5, 2}));
    CHECK(whole == values);
    std::vector<float> rows(2 * 5 * 2);
    file.read_rows(name, 1, host_view(rows.data(), {2, 5, 2}));
    CHECK(rows == std::vector<float>(values.begin() + 10, values.end()));
    std::vector<float> second(2 * 5);  // the second column of the last two rows
    const Tensor column = host_view(second.data(), {2, 5, 1});
    file.read_box(name, {{1, 0, 1}, {0, 0, 0}, {2, 5, 1}}, column);
    for (std::size_t at = 0; at < second.size(); ++at) CHECK(second[at] == values[10 + 2 * at + 1]);
    // The middle of the second plane, into the corner of a larger tensor; the rest stays.
    std::vector<float> larger(2 * 4 * 3, 9.0f);
    file.read_box(name, {{1, 1, 0}, {1, 1, 1}, {1, 3, 2}}, host_view(larger.data(), {2, 4, 3}));
    for (std::size_t at = 0; at < larger.size(); ++at) {
      const std::size_t plane = at / 12, j = at / 3 % 4, k = at % 3;
      const bool is_inside = plane == 1 && j >= 1 && k >= 1;
      CHECK(larger[at] == (is_inside ? values[10 + 2 * j + k - 1] : 9.0f));
    }
    CHECK_THROWS_AS(file.read_box(name, {{1, 0, 2}, {0, 0, 0}, {2, 5, 1}}, column), RuntimeFault);
    CHECK_THROWS_AS(file.read_box(name, {{2, 0, 0}, {0, 0, 0}, {2, 5, 1}}, column), RuntimeFault);
    CHECK_THROWS_AS(file.read_box(name, {{0, 0, 0}, {0, 1, 0}, {2, 5, 1}}, column),
                    std::logic_error);
    CHECK(file.info(name).shape == Shape{3, 5, 2});
    CHECK(file.info(name).type == "f32");
    CHECK_THROWS_AS(file.read(name, host_view(whole.data(), {3, 10, 1})), RuntimeFault);
    CHECK_THROWS_AS(file.read_rows(name, 2, host_view(rows.data(), {2, 5, 2})), RuntimeFault);
  }
}

TEST_CASE("h5: every number type, bf16 as bits with a mark, conversion into the memory type") {
  const Scratch scratch;
  const std::string path = scratch.path("types.h5");
  const std::vector<double> f64 = {1.0 / 3.0, -2.0};
  const std::vector<std::uint64_t> u64 = {~0ULL, 7};
  const std::vector<std::uint16_t> u16 = {65535, 7};
  const std::vector<std::uint32_t> u32 = {4294967295u, 7};
  std::vector<BFloat16> bf16 = {BFloat16(1.5f), BFloat16(-3.0f)};
  std::vector<std::int64_t> i64 = {-5, 1LL << 40};
  std::vector<std::uint8_t> u8 = {0, 255};
  H5File writer(path, H5File::Mode::create);
  writer.write_raw("f64", "f64", {2}, f64.data());
  writer.write_raw("u64", "u64", {2}, u64.data());
  writer.write_raw("u16", "u16", {2}, u16.data());
  writer.write_raw("u32", "u32", {2}, u32.data());
  writer.write("bf16", host_view(bf16.data(), {2}));
  writer.write("i64", host_view(i64.data(), {2}));
  writer.write("u8", host_view(u8.data(), {2}));
  writer.close();

  const H5File file(path, H5File::Mode::read);
  for (const char* type : {"f64", "u64", "u16", "u32", "bf16", "i64", "u8"})
    CHECK(file.info(type).type == type);
  std::vector<double> f64_back(2);
  file.read_raw("f64", "f64", 0, 2, f64_back.data());
  CHECK(f64_back == f64);
  std::vector<std::uint64_t> u64_back(2);
  file.read_raw("u64", "u64", 0, 2, u64_back.data());
  CHECK(u64_back == u64);
  std::vector<std::int32_t> ids(2);
  file.read("u16", host_view(ids.data(), {2}));
  CHECK(ids == std::vector<std::int32_t>{65535, 7});
  std::vector<float> wide(2);
  file.read("bf16", host_view(wide.data(), {2}));
  CHECK(wide == std::vector<float>{1.5f, -3.0f});
  std::vector<BFloat16> bits(2);
  file.read("bf16", host_view(bits.data(), {2}));
  CHECK(bits[1].bits == bf16[1].bits);
  CHECK_THROWS_AS(file.read("bf16", host_view(ids.data(), {2})), RuntimeFault);
  CHECK_THROWS_AS(file.read("u16", host_view(bits.data(), {2})), RuntimeFault);
}

TEST_CASE("h5: attributes and strings") {
  const Scratch scratch;
  H5File file(scratch.path("s.h5"), H5File::Mode::create);
  file.set_attribute("", "title", std::string("größe"));
  file.set_attribute("", "title", std::string("replaced"));
  file.create_group("a/b");
  file.set_attribute("a/b", "third", 1.0 / 3.0);
  file.set_attribute("a/b", "count", std::int64_t{1} << 50);
  file.write_strings("names", {"x", "", "zwei Wörter"});
  file.write_strings("none", {});
  CHECK(file.string_attribute("", "title") == "replaced");
  CHECK(file.double_attribute("a/b", "third") == 1.0 / 3.0);
  CHECK(file.int_attribute("a/b", "count") == std::int64_t{1} << 50);
  CHECK(file.has_attribute("a/b", "count"));
  CHECK_FALSE(file.has_attribute("a/b", "title"));
  CHECK_THROWS_AS(file.int_attribute("", "title"), UserError);
  CHECK_THROWS_AS(file.int_attribute("a/b", "third"), UserError);
  CHECK(file.double_attribute("a/b", "count") == 0x1p50);
  CHECK(file.read_strings("names") == std::vector<std::string>{"x", "", "zwei Wörter"});
  CHECK(file.read_strings("none").empty());
  CHECK(file.exists("a/b"));
  CHECK_FALSE(file.exists("a/c/d"));
  CHECK_THROWS_AS(file.string_attribute("", "absent"), RuntimeFault);
  CHECK_THROWS_AS(file.string_attribute("a/b", "count"), RuntimeFault);
}

TEST_CASE("h5: a growable dataset, and where its chunks lie in the file") {
  const Scratch scratch;
  const std::string path = scratch.path("g.h5");
  H5File writer(path, H5File::Mode::create);
  writer.create_growable("ids", "u16", {4, 0});
  writer.create_growable("packed", "u16", {4, 5});
  std::vector<std::uint16_t> expected(11);
  std::iota(expected.begin(), expected.end(), std::uint16_t{100});
  for (const char* name : {"ids", "packed"}) {
    writer.append(name, expected.data(), 3);
    writer.append(name, expected.data() + 3, 0);
    writer.append(name, expected.data() + 3, 8);
  }
  writer.close();
  const H5File file(path, H5File::Mode::read);
  for (const char* name : {"ids", "packed"}) {
    std::vector<std::uint16_t> back(11);
    file.read_raw(name, "u16", 0, 11, back.data());
    CHECK(back == expected);
    CHECK(file.chunk_rows(name) == 4);
  }
  CHECK(file.chunk_addresses("packed").empty());
  const std::vector<std::int64_t> addresses = file.chunk_addresses("ids");
  REQUIRE(addresses.size() == 3);
  const std::string bytes = Scratch::read(path);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const auto at = static_cast<std::size_t>(addresses[i / 4]) + 2 * (i % 4);
    REQUIRE(static_cast<unsigned char>(bytes.at(at)) == expected[i]);
  }
}

TEST_CASE("h5: faults name the file, the object and the reason") {
  const Scratch scratch;
  try {
    const H5File file(scratch.path("absent.h5"), H5File::Mode::read);
    FAIL("opened a file that does not exist");
  } catch (const RuntimeFault& error) {
    CHECK(std::string(error.what()).find("absent.h5") != std::string::npos);
    CHECK(std::string(error.what()).find("No such file") != std::string::npos);
  }
  const std::string path = scratch.write("text.h5", "this is not HDF5");
  CHECK_THROWS_AS(H5File(path, H5File::Mode::read), RuntimeFault);
  CHECK_THROWS_AS(H5File(scratch.path("no/such/folder.h5"), H5File::Mode::create), RuntimeFault);
  if (std::filesystem::exists("/dev/full")) {
    // Each write to /dev/full fails as on a full disk.
    const auto fill = [] {
      H5File file("/dev/full", H5File::Mode::create);
      std::vector<std::int64_t> values(1 << 16);
      file.write("x", host_view(values.data(), {1 << 16}));
      file.close();
    };
    CHECK_THROWS_AS(fill(), RuntimeFault);
  }
}

}  // namespace
}  // namespace openmoe
