// The reader of PyTorch state dicts on files of the real library, on pickles that want more than
// tensors, and on damaged files.
#include "data/torch_pickle.h"

#include <random>

#include "core/base/error.h"
#include "data/torch_file.h"
#include "test/support/catch.h"
#include "test/support/message_of.h"
#include "test/support/scratch.h"

namespace openmoe::test {
namespace {

const std::string kCorpus = source_dir() + "/test/fuzz/corpus/torch/";

std::vector<float> read_all(WeightFile& file, const std::string& name) {
  for (std::size_t i = 0; i < file.weights().size(); ++i) {
    const WeightInfo& weight = file.weights()[i];
    if (weight.name != name) continue;
    std::vector<float> values(static_cast<std::size_t>(weight.num_elements()));
    // In two parts, so that seeking is seen too.
    const std::int64_t half = weight.num_rows() / 2;
    file.read_rows(i, half, weight.num_rows() - half, values.data() + half * weight.num_columns());
    file.read_rows(i, 0, half, values.data());
    return values;
  }
  throw std::runtime_error("no tensor " + name);
}

using namespace std::string_literals;

// Pieces of a pickle as torch.save writes it.
const std::string kProto2 = "\x80\x02"s;
const std::string kOrderedDict = "ccollections\nOrderedDict\n)R"s;

std::string text_of(const std::string& text) {
  const auto length = static_cast<char>(text.size());
  return "X"s + length + "\0\0\0"s + text;
}
std::string number_of(int value) {
  return "K"s + static_cast<char>(value);
}
std::string tuple_of(const std::vector<int>& values) {
  std::string code = "(";
  for (const int value : values) code += number_of(value);
  return code + "t";
}
std::string storage_of(int elements, const std::string& type = "FloatStorage") {
  return "(" + text_of("storage") + "ctorch\n" + type + "\n" + text_of("0") + text_of("cpu") +
         number_of(elements) + "tQ";
}
std::string tensor_of(const std::string& storage, int offset, const std::string& shape,
                      const std::string& strides) {
  return "ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number_of(offset) + shape + strides +
         "\x89" + kOrderedDict + "tR";
}
std::string small_tensor() {
  return tensor_of(storage_of(6), 0, tuple_of({2, 3}), tuple_of({3, 1}));
}
std::string dict_of(const std::string& name, const std::string& value) {
  return kProto2 + "}" + text_of(name) + value + "s.";
}
std::string refusal(const std::string& pickle) {
  return message_of<UserError>([&] { parse_state_dict(pickle, "some.bin"); });
}

}  // namespace

TEST_CASE("torch: a state dict of the original library is read exactly", "[torch]") {
  const auto file = open_weight_file(kCorpus + "plain.bin");
  REQUIRE(file->weights().size() == 6);
  CHECK(read_all(*file, "full") == std::vector<float>{-2.5f, -1.5f, -0.5f, 0.5f, 1.5f, 2.5f});
  CHECK(read_all(*file, "half") == std::vector<float>{0.0f, 0.25f, 0.5f, 0.75f, 1.0f, 1.25f});
  CHECK(read_all(*file, "brain") == std::vector<float>{0.0f, 3.0f, 6.0f, 9.0f});
  CHECK(read_all(*file, "scalar") == std::vector<float>{7.0f});
  CHECK(read_all(*file, "empty").empty());
  const auto stack = read_all(*file, "stack");
  for (std::size_t i = 0; i < 24; ++i) CHECK(stack[i] == static_cast<float>(i));

  const auto module = open_weight_file(kCorpus + "module.bin");
  CHECK(module->weights().at(0).name == "0.weight");
  CHECK(module->weights().at(0).shape == std::vector<std::int64_t>{2, 3});
  CHECK(read_all(*module, "1.bias") == std::vector<float>{3.0f, 3.0f});
  CHECK(read_all(*open_weight_file(kCorpus + "parameter.bin"), "weight") ==
        std::vector<float>{1.0f, 1.0f});
}

TEST_CASE("torch: views are read as the tensors they show", "[torch]") {
  const auto file = open_weight_file(kCorpus + "views.bin");
  const auto transposed = read_all(*file, "transposed");  // (6, 4) of (4, 6)
  for (std::size_t i = 0; i < 6; ++i)
    for (std::size_t j = 0; j < 4; ++j)
      CHECK(transposed[i * 4 + j] == static_cast<float>(j * 6 + i));
  const auto stacked = read_all(*file, "stacked_transposed");  // (2, 4, 3) of (2, 3, 4)
  for (std::size_t e = 0; e < 2; ++e)
    for (std::size_t i = 0; i < 4; ++i)
      for (std::size_t j = 0; j < 3; ++j)
        CHECK(stacked[(e * 4 + i) * 3 + j] == static_cast<float>((e * 3 + j) * 4 + i));
  const auto columns = read_all(*file, "columns");  // columns 1 to 3 of (4, 6)
  for (std::size_t i = 0; i < 4; ++i)
    for (std::size_t j = 0; j < 3; ++j)
      CHECK(columns[i * 3 + j] == static_cast<float>(i * 6 + j + 1));
  CHECK(read_all(*file, "shared") == std::vector<float>{12.0f, 13.0f, 14.0f, 15.0f, 16.0f, 17.0f});
  const std::string text = message_of<UserError>([&] { read_all(*file, "every_other"); });
  CHECK(contains(text, "\"every_other\""));
  CHECK(contains(text, "contiguous"));
}

TEST_CASE("torch: what is not a tensor of numbers is refused by name", "[torch]") {
  const auto integers = open_weight_file(kCorpus + "integers.bin");
  CHECK(contains(message_of<UserError>([&] { read_all(*integers, "ids"); }), "LongStorage"));
  CHECK(contains(message_of<UserError>([&] { open_weight_file(kCorpus + "not_only_tensors.bin"); }),
                 "\"step\" is a number"));
  CHECK(contains(message_of<UserError>([&] { open_weight_file(kCorpus + "legacy.bin"); }), "1.6"));
}

TEST_CASE("torch: a pickle that wants to call something is refused", "[torch][malicious]") {
  CHECK(refusal(dict_of("a", small_tensor())).empty());
  const std::string system = "cos\nsystem\n" + text_of("touch /tmp/owned") + "\x85R";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {dict_of("a", system), "\"os.system\""},
      {dict_of("a", "cbuiltins\neval\n" + text_of("1") + "\x85R"), "\"builtins.eval\""},
      {dict_of("a", "ctorch\nload\n)R"), "\"torch.load\""},
      {dict_of("a", "ctorch._utils\n_rebuild_tensor\n)R"), "\"torch._utils._rebuild_tensor\""},
      {dict_of("a", "ctorch\nFloatStorage\n)R"), "calls FloatStorage"},
      {kProto2 + "(ios\nsystem\n.", "0x69"},                            // INST
      {kProto2 + "(cos\nsystem\no.", "\"os.system\""},                  // OBJ
      {kProto2 + text_of("os") + text_of("system") + "\x93.", "0x93"},  // STACK_GLOBAL
      {kProto2 + "ccollections\nOrderedDict\n)\x81.", "0x81"},          // NEWOBJ
      {kProto2 + "\x82\x01.", "0x82"},                                  // EXT1
      {kProto2 + "P0\n.", "0x50"},                                      // PERSID
      {kProto2 + "S'text'\n.", "0x53"},  // STRING, which Python evaluates
      {kProto2 + "I1\n.", "0x49"},       // INT, the same
      {kProto2 + "}20.", "0x32"},        // DUP
      {"\x80\x04}."s, "protocol 4"},
      {"}."s, "protocol 2"},
      {kProto2 + kOrderedDict + small_tensor() + "b.", "BUILD"},
  };
  for (const auto& [pickle, phrase] : cases) {
    const std::string text = refusal(pickle);
    INFO(text);
    CHECK(contains(text, phrase));
    CHECK(contains(text, "some.bin"));
    CHECK(contains(text, "byte"));
  }
}

TEST_CASE("torch: a broken pickle is refused", "[torch]") {
  const auto with_shape = [](const std::string& shape, const std::string& strides, int offset = 0) {
    return dict_of("a", tensor_of(storage_of(6), offset, shape, strides));
  };
  const std::string huge = "\x8a\x08\0\0\0\0\0\0\0\x10"s;  // LONG1 2^60
  const std::string negative = "J\xff\xff\xff\xff"s;       // BININT -1
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "ends"},
      {kProto2, "STOP"},
      {kProto2 + ".", "empty stack"},
      {kProto2 + "}}.", "left over"},
      {kProto2 + "}.}", "follow"},
      {kProto2 + "K", "BININT1"},
      {kProto2 + "X\xff\xff\xff\xff", "BINUNICODE"},
      {kProto2 + "X\x04\0\0\0ab"s, "BINUNICODE"},
      {kProto2 + "ctorch", "GLOBAL"},
      {kProto2 + "h\x05.", "memo 5"},
      {kProto2 + "t.", "no mark"},
      {kProto2 + "(}\x85\x86.", "empty stack"},
      {kProto2 + "}(" + text_of("a") + "u.", "without a value"},
      {kProto2 + "}K\x01K\x02s.", "key of the state dict"},
      {kProto2 + "}" + text_of("a") + "K\x02s.", "\"a\" is a number"},
      {kProto2 + "}" + text_of("a") + small_tensor() + "s" + text_of("a") + small_tensor() + "s.",
       "more than once"},
      {kProto2 + "K\x01.", "a dictionary"},
      {kProto2 + "K\x01Q.", "BINPERSID"},
      {kProto2 + ")Q.", "0 parts"},
      {kProto2 + "}\x8a\x09" + std::string(9, '\1') + ".", "9 bytes"},
      {with_shape(tuple_of({2, 4}), tuple_of({4, 1})), "beyond the 6 elements"},
      {with_shape(tuple_of({2, 3}), tuple_of({3, 1}), 1), "beyond the 6 elements"},
      {with_shape(tuple_of({2, 3}), tuple_of({200, 1})), "beyond the 6 elements"},
      {with_shape(tuple_of({2, 3}), tuple_of({1})), "1 strides"},
      {with_shape("(" + huge + "t", tuple_of({1})), "beyond the 6 elements"},
      {with_shape("(" + huge + huge + "t", tuple_of({0, 0})),
       "more elements than can be addressed"},
      {with_shape("(" + huge + "t", "(" + huge + "t"), "beyond the 6 elements"},
      {with_shape("(" + negative + "t", tuple_of({1})), "-1"},
      {with_shape(tuple_of({2}), "(" + negative + "t"), "-1"},
      {with_shape("(" + std::string(40, ')') + "t", tuple_of({1})), "40 axes"},
      {with_shape("(}t", tuple_of({1})), "a dictionary"},
      {dict_of("a", tensor_of("K\x01", 0, tuple_of({1}), tuple_of({1}))), "a number"},
      {dict_of("a", "ctorch._utils\n_rebuild_tensor_v2\n)R"), "0 arguments"},
  };
  for (const auto& [pickle, phrase] : cases) {
    const std::string text = refusal(pickle);
    INFO(text << " for " << phrase);
    CHECK(contains(text, phrase));
  }
}

TEST_CASE("torch: memory stays in proportion to the file", "[torch]") {
  // Tuples of tuples of one value: 2^60 leaves if anything walked them.
  std::string pickle = kProto2 + ")";
  for (int i = 0; i < 60; ++i) pickle += "q\1h\1\x86";
  CHECK(contains(refusal(pickle + "."), "a dictionary"));
  // A dictionary that contains itself.
  CHECK(contains(refusal(kProto2 + "}q\1" + text_of("a") + "h\1s."), "\"a\" is a dictionary"));
}

TEST_CASE("torch: a damaged archive is refused", "[torch]") {
  const Scratch scratch;
  const auto open = [&](std::string bytes) {
    const std::string path = scratch.write("x.bin", bytes);
    return message_of<UserError>([&] {
      const auto file = open_weight_file(path);
      for (const WeightInfo& weight : file->weights()) read_all(*file, weight.name);
    });
  };
  const std::string good = Scratch::read(kCorpus + "module.bin");
  CHECK(open(good).empty());
  CHECK(contains(open(good.substr(0, good.size() - 40)), "truncated"));
  // One byte of a tensor: the checksum of its record tells.
  std::string flipped = good;
  const std::size_t ones =
      flipped.find("\0\0\x80\x3f\0\0\x80\x3f"s);  // the bias of the first layer, (1, 1)
  REQUIRE(ones != std::string::npos);
  flipped[ones + 2] = '\x40';
  CHECK(contains(open(flipped), "CRC"));
  // A record that the pickle names but the archive lacks.
  std::string renamed = good;
  for (std::size_t at = 0; (at = renamed.find("module/data/3", at)) != std::string::npos; ++at)
    renamed[at + 12] = '7';
  CHECK(contains(open(renamed), "module/data/3"));
  // The central directory says that a storage is larger than its numbers need.
  CHECK(contains(open(Scratch::read(kCorpus + "plain.bin").substr(0, 500) + good.substr(500)),
                 "x.bin"));
}

TEST_CASE("torch: damaged files are read or refused, never worse", "[torch]") {
  const Scratch scratch;
  std::mt19937 random(7);
  int refused = 0;
  for (const char* name : {"plain.bin", "views.bin", "module.bin", "parameter.bin"}) {
    const std::string good = Scratch::read(kCorpus + name);
    for (int round = 0; round < 500; ++round) {
      std::string bytes = good;
      for (unsigned i = 0; i <= random() % 3; ++i)
        bytes[random() % bytes.size()] = static_cast<char>(random());
      const std::string path = scratch.write("x.bin", bytes);
      refused += !message_of<UserError>([&] {
                    const auto file = open_weight_file(path);
                    for (const WeightInfo& weight : file->weights()) read_all(*file, weight.name);
                  }).empty();
    }
  }
  CHECK(refused > 1000);
}

}  // namespace openmoe::test
