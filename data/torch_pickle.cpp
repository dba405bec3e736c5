#include "data/torch_pickle.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <unordered_map>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

constexpr std::size_t kHighestRank = 16;

// The instructions, by the names of Python's pickletools. All are of protocol 2 or older, which
// torch.save writes.
enum Opcode : unsigned char {
  kMark = '(',
  kStop = '.',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinUnicode = 'X',
  kEmptyTuple = ')',
  kBuild = 'b',
  kGlobal = 'c',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyDict = '}',
  kProto = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
};

enum class Global { ordered_dict, rebuild_tensor, rebuild_parameter, storage };

struct GlobalName {
  const char* module;
  const char* name;
  Global meaning;
  WeightType type = WeightType::other;  // of storages
  std::int64_t element_bytes = 0;
};
constexpr GlobalName kGlobals[] = {
    {"collections", "OrderedDict", Global::ordered_dict},
    {"torch._utils", "_rebuild_tensor_v2", Global::rebuild_tensor},
    {"torch._utils", "_rebuild_parameter", Global::rebuild_parameter},
    {"torch", "FloatStorage", Global::storage, WeightType::f32, 4},
    {"torch", "HalfStorage", Global::storage, WeightType::f16, 2},
    {"torch", "BFloat16Storage", Global::storage, WeightType::bf16, 2},
    {"torch", "DoubleStorage", Global::storage, WeightType::other, 8},
    {"torch", "LongStorage", Global::storage, WeightType::other, 8},
    {"torch", "IntStorage", Global::storage, WeightType::other, 4},
    {"torch", "ShortStorage", Global::storage, WeightType::other, 2},
    {"torch", "CharStorage", Global::storage, WeightType::other, 1},
    {"torch", "ByteStorage", Global::storage, WeightType::other, 1},
    {"torch", "BoolStorage", Global::storage, WeightType::other, 1},
};

enum class Kind { boolean, integer, text, tuple, dict, global, storage, tensor };

constexpr const char* name_of(Kind kind) {
  constexpr const char* kNames[] = {"a truth value", "a number", "a text",    "a tuple",
                                    "a dictionary",  "a name",   "a storage", "a tensor"};
  return kNames[static_cast<std::size_t>(kind)];
}

using ValueId = std::uint32_t;

// Which members hold depends on the kind. Values refer to each other by index, so that nothing is
// copied or walked in depth however a file links them.
struct Value {
  Kind kind = Kind::boolean;
  std::int64_t number = 0;             // boolean, integer; storage: elements
  std::string_view text = {};          // text; storage: its record
  const GlobalName* global = nullptr;  // global; storage: its type
  std::vector<ValueId> items = {};     // tuple; dict: key, value, key, value, ...
  std::size_t tensor = 0;              // index into the machine's tensors
};

class Machine {
 public:
  Machine(std::string_view pickle, const std::string& origin)
      : rest_(pickle), size_(pickle.size()), origin_(origin) {
    // One of each is enough, and a file cannot use up memory by repeating them.
    empty_tuple_ = create({.kind = Kind::tuple});
    true_ = create({.kind = Kind::boolean, .number = 1});
    false_ = create({.kind = Kind::boolean});
  }

  std::vector<PickledTensor> run() {
    if (byte("the first instruction") != kProto) refuse("does not begin as a pickle of protocol 2");
    if (const auto version = byte("PROTO"); version != 2)
      refuse(concat("is a pickle of protocol ", static_cast<int>(version),
                    ", allowed: 2, which torch.save writes by default"));
    while (step()) {
    }
    return state_dict();
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw UserError(concat(origin_, ": byte ", instruction_, ": ", what));
  }
  ValueId create(Value value) {
    values_.push_back(std::move(value));
    return static_cast<ValueId>(values_.size() - 1);
  }

  std::string_view bytes(std::size_t count, const char* what) {
    if (count > rest_.size()) refuse(concat("the pickle ends inside ", what));
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }
  unsigned char byte(const char* what) { return static_cast<unsigned char>(bytes(1, what)[0]); }
  std::uint32_t unsigned_int(std::size_t size, const char* what) {
    std::uint32_t value = 0;
    std::memcpy(&value, bytes(size, what).data(), size);
    return value;
  }
  std::string_view line(const char* what) {
    const std::size_t end = rest_.find('\n');
    if (end == std::string_view::npos) refuse(concat("the pickle ends inside ", what));
    const std::string_view text = bytes(end, what);
    rest_.remove_prefix(1);
    return text;
  }

  void push(ValueId id) { stack_.push_back(id); }
  ValueId pop() {
    const std::size_t floor = marks_.empty() ? 0 : marks_.back();
    if (stack_.size() <= floor) refuse("takes a value from an empty stack");
    const ValueId id = stack_.back();
    stack_.pop_back();
    return id;
  }
  ValueId pop(Kind kind, const char* what) {
    const ValueId id = pop();
    if (values_[id].kind != kind)
      refuse(concat(what, " found ", name_of(values_[id].kind), ", allowed: ", name_of(kind)));
    return id;
  }
  std::vector<ValueId> pop_to_mark() {
    if (marks_.empty()) refuse("there is no mark on the stack");
    const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<ValueId> items(first, stack_.end());
    stack_.erase(first, stack_.end());
    marks_.pop_back();
    return items;
  }

  // One instruction; false at the end.
  bool step() {
    instruction_ = size_ - rest_.size();
    const unsigned char opcode = byte("its instructions; there is no STOP");
    switch (opcode) {
      case kStop:
        return false;
      case kMark:
        marks_.push_back(stack_.size());
        break;
      case kNewTrue:
        push(true_);
        break;
      case kNewFalse:
        push(false_);
        break;
      case kBinInt:
        push_integer(static_cast<std::int32_t>(unsigned_int(4, "BININT")));
        break;
      case kBinInt1:
        push_integer(unsigned_int(1, "BININT1"));
        break;
      case kBinInt2:
        push_integer(unsigned_int(2, "BININT2"));
        break;
      case kLong1:
        long1();
        break;
      case kBinUnicode: {
        const std::uint32_t length = unsigned_int(4, "BINUNICODE");
        push(create({.kind = Kind::text, .text = bytes(length, "BINUNICODE")}));
        break;
      }
      case kBinPut:
        put(unsigned_int(1, "BINPUT"));
        break;
      case kLongBinPut:
        put(unsigned_int(4, "LONG_BINPUT"));
        break;
      case kBinGet:
        get(unsigned_int(1, "BINGET"));
        break;
      case kLongBinGet:
        get(unsigned_int(4, "LONG_BINGET"));
        break;
      default:
        compose(opcode);
    }
    return true;
  }

  // Instructions that make a value of others.
  void compose(unsigned char opcode) {
    switch (opcode) {
      case kEmptyTuple:
        push(empty_tuple_);
        break;
      case kTuple:
        push(create({.kind = Kind::tuple, .items = pop_to_mark()}));
        break;
      case kTuple1:
      case kTuple2:
      case kTuple3: {
        std::vector<ValueId> items(static_cast<std::size_t>(opcode - kTuple1 + 1));
        for (auto item = items.rbegin(); item != items.rend(); ++item) *item = pop();
        push(create({.kind = Kind::tuple, .items = std::move(items)}));
        break;
      }
      case kEmptyDict:
        push(create({.kind = Kind::dict}));
        break;
      case kSetItem: {
        const ValueId value = pop(), key = pop();
        set_items({key, value});
        break;
      }
      case kSetItems:
        set_items(pop_to_mark());
        break;
      case kGlobal:
        global();
        break;
      case kBinPersId:
        storage();
        break;
      case kReduce:
        reduce();
        break;
      case kBuild:  // attributes of a dictionary: torch keeps format versions of modules there
        pop(Kind::dict, "BUILD");
        push(pop(Kind::dict, "BUILD"));
        break;
      default:
        refuse(concat("instruction ", hex(opcode),
                      " is not among those of a state dict; this reader takes tensors only and "
                      "executes nothing. Save again with torch.save(model.state_dict(), ...) or as "
                      "safetensors"));
    }
  }

  static std::string hex(unsigned char value) {
    constexpr const char* kDigits = "0123456789abcdef";
    return {'0', 'x', kDigits[value >> 4], kDigits[value & 15]};
  }

  void push_integer(std::int64_t number) {
    push(create({.kind = Kind::integer, .number = number}));
  }

  // A two's complement number of any length, least byte first.
  void long1() {
    const std::size_t length = byte("LONG1");
    const std::string_view digits = bytes(length, "LONG1");
    if (length > 8) refuse(concat("a number of ", length, " bytes, allowed: up to 8"));
    const bool negative = length > 0 && (static_cast<unsigned char>(digits.back()) & 0x80u) != 0;
    std::uint64_t value = negative ? ~std::uint64_t{0} : 0;
    for (std::size_t i = length; i-- > 0;)
      value = (value << 8) | static_cast<unsigned char>(digits[i]);
    push_integer(static_cast<std::int64_t>(value));
  }

  void put(std::uint32_t index) {
    const ValueId id = pop();
    memo_[index] = id;
    push(id);
  }
  void get(std::uint32_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) refuse(concat("takes memo ", index, ", which was never put"));
    push(found->second);
  }

  void set_items(const std::vector<ValueId>& items) {
    if (items.size() % 2 != 0) refuse("SETITEMS has a key without a value");
    const ValueId dict = pop(Kind::dict, "SETITEMS");
    auto& all = values_[dict].items;
    all.insert(all.end(), items.begin(), items.end());
    push(dict);
  }

  void global() {
    const std::string_view module = line("GLOBAL"), name = line("GLOBAL");
    const auto* found = std::find_if(
        std::begin(kGlobals), std::end(kGlobals),
        [&](const GlobalName& known) { return module == known.module && name == known.name; });
    if (found == std::end(kGlobals))
      refuse("names " + in_quotes(std::string(module) + "." + std::string(name)) +
             ", which no state dict of plain tensors needs; this reader takes tensors only and "
             "executes nothing");
    push(create({.kind = Kind::global, .global = found}));
  }

  const Value& item(ValueId tuple, std::size_t index, Kind kind, const char* what) const {
    const Value& value = values_[values_[tuple].items[index]];
    if (value.kind != kind)
      refuse(concat(what, " found ", name_of(value.kind), ", allowed: ", name_of(kind)));
    return value;
  }

  // ("storage", type, record, device, number of elements)
  void storage() {
    const ValueId id = pop(Kind::tuple, "BINPERSID");
    if (values_[id].items.size() != 5)
      refuse(concat("a storage has ", values_[id].items.size(), " parts, allowed: 5"));
    if (item(id, 0, Kind::text, "BINPERSID").text != "storage")
      refuse("a persistent id is not that of a storage");
    const Value& type = item(id, 1, Kind::global, "the type of a storage:");
    if (type.global->meaning != Global::storage)
      refuse(concat("a storage has the type ", type.global->name));
    Value made{.kind = Kind::storage};
    made.global = type.global;
    made.text = item(id, 2, Kind::text, "the record of a storage:").text;
    item(id, 3, Kind::text, "the device of a storage:");
    made.number = item(id, 4, Kind::integer, "the size of a storage:").number;
    std::int64_t size_bytes = 0;
    if (made.number < 0 ||
        __builtin_mul_overflow(made.number, made.global->element_bytes, &size_bytes))
      refuse(concat("a storage has ", made.number, " elements"));
    push(create(std::move(made)));
  }

  void reduce() {
    const ValueId arguments = pop(Kind::tuple, "REDUCE");
    const GlobalName& callee = *values_[pop(Kind::global, "REDUCE")].global;
    const std::size_t count = values_[arguments].items.size();
    const auto expect = [&](std::size_t least, std::size_t most) {
      if (count < least || count > most) refuse(concat(callee.name, " has ", count, " arguments"));
    };
    switch (callee.meaning) {
      case Global::ordered_dict:
        expect(0, 0);
        push(create({.kind = Kind::dict}));
        break;
      case Global::rebuild_tensor:
        expect(6, 7);
        rebuild_tensor(arguments);
        break;
      case Global::rebuild_parameter:  // (tensor, requires_grad, hooks)
        expect(3, 3);
        item(arguments, 0, Kind::tensor, "_rebuild_parameter");
        expect_empty_dict(arguments, 2);
        push(values_[arguments].items[0]);
        break;
      case Global::storage:
        refuse(concat("calls ", callee.name));
    }
  }

  void expect_empty_dict(ValueId arguments, std::size_t index) const {
    if (!item(arguments, index, Kind::dict, "hooks or metadata of a tensor:").items.empty())
      refuse("a tensor has hooks or metadata, allowed: none");
  }

  std::vector<std::int64_t> integers(ValueId arguments, std::size_t index, const char* what) const {
    const ValueId tuple = values_[arguments].items[index];
    const std::size_t rank = item(arguments, index, Kind::tuple, what).items.size();
    if (rank > kHighestRank)
      refuse(concat("a tensor has ", rank, " axes, allowed: up to ", kHighestRank));
    std::vector<std::int64_t> numbers;
    for (std::size_t axis = 0; axis < rank; ++axis) {
      numbers.push_back(item(tuple, axis, Kind::integer, what).number);
      if (numbers.back() < 0)
        refuse(concat(what, " found ", numbers.back(), ", allowed: 0 or more"));
    }
    return numbers;
  }

  // (storage, offset, shape, strides, requires_grad, hooks[, metadata])
  void rebuild_tensor(ValueId arguments) {
    const Value& storage = item(arguments, 0, Kind::storage, "a tensor's storage:");
    PickledTensor tensor;
    tensor.weight.type = storage.global->type;
    tensor.weight.type_name = storage.global->name;
    tensor.element_bytes = storage.global->element_bytes;
    tensor.storage = std::string(storage.text);
    tensor.storage_elements = storage.number;
    tensor.offset = item(arguments, 1, Kind::integer, "a tensor's offset:").number;
    tensor.weight.shape = integers(arguments, 2, "a tensor's shape:");
    tensor.strides = integers(arguments, 3, "a tensor's strides:");
    for (std::size_t i = 5; i < values_[arguments].items.size(); ++i)
      expect_empty_dict(arguments, i);
    tensors_.push_back(std::move(tensor));
    push(create({.kind = Kind::tensor, .tensor = tensors_.size() - 1}));
  }

  // The last element must lie inside the storage; strides are not negative, so all others do too.
  void check_bounds(const PickledTensor& tensor) const {
    const auto fail = [&](const std::string& what) {
      throw UserError(origin_ + ": tensor " + in_quotes(tensor.weight.name) + " " + what);
    };
    const std::vector<std::int64_t>& shape = tensor.weight.shape;
    std::int64_t count = 0;
    if (!count_elements(shape, count))
      fail("has the shape " + shape_to_string(shape) + ", more elements than can be addressed");
    if (tensor.strides.size() != shape.size())
      fail(concat("has ", shape.size(), " axes but ", tensor.strides.size(), " strides"));
    if (tensor.offset < 0) fail(concat("begins at element ", tensor.offset, " of its storage"));
    if (count == 0) return;
    std::int64_t last = tensor.offset;
    bool inside = true;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      std::int64_t reach = 0;
      inside = inside && !__builtin_mul_overflow(shape[axis] - 1, tensor.strides[axis], &reach) &&
               !__builtin_add_overflow(last, reach, &last);
    }
    if (!inside || last >= tensor.storage_elements)
      fail(concat("of shape ", shape_to_string(shape), " and strides ",
                  shape_to_string(tensor.strides), " from element ", tensor.offset,
                  " reaches beyond the ", tensor.storage_elements, " elements of its storage"));
  }

  std::vector<PickledTensor> state_dict() {
    if (!rest_.empty()) refuse(concat(rest_.size(), " bytes follow the end of the pickle"));
    const ValueId root = pop(Kind::dict, "the whole file:");
    if (!stack_.empty() || !marks_.empty()) refuse("values are left over at the end");
    std::vector<PickledTensor> found;
    std::set<std::string_view> names;
    const std::vector<ValueId>& items = values_[root].items;
    for (std::size_t i = 0; i < items.size(); i += 2) {
      const Value &key = values_[items[i]], &value = values_[items[i + 1]];
      if (key.kind != Kind::text)
        refuse(concat("a key of the state dict is ", name_of(key.kind), ", allowed: a text"));
      const std::string name(key.text);
      if (!names.insert(key.text).second)
        refuse("tensor " + in_quotes(name) + " stands more than once in the state dict");
      if (value.kind != Kind::tensor)
        refuse(concat(in_quotes(name), " is ", name_of(value.kind), ", allowed: a tensor"));
      PickledTensor tensor = tensors_[value.tensor];
      tensor.weight.name = name;
      check_bounds(tensor);
      found.push_back(std::move(tensor));
    }
    return found;
  }

  std::string_view rest_;
  std::size_t size_ = 0;
  std::size_t instruction_ = 0;  // where the current one begins
  std::string origin_;
  std::vector<Value> values_;
  std::vector<ValueId> stack_;
  std::vector<std::size_t> marks_;  // heights of the stack
  std::unordered_map<std::uint32_t, ValueId> memo_;
  std::vector<PickledTensor> tensors_;
  ValueId empty_tuple_ = 0, true_ = 0, false_ = 0;
};

}  // namespace

std::vector<PickledTensor> parse_state_dict(std::string_view pickle, const std::string& origin) {
  return Machine(pickle, origin).run();
}

}  // namespace openmoe
