#include <cstdint>

#include "test/cuda_emulation/runtime/symbols.h"

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <set>

namespace cuda_emulation {
namespace {

struct Image {
  std::uintptr_t load_bias = 0;
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  std::map<std::uintptr_t, std::string> functions;  // mangled, by address
  std::vector<SharedVariable> shared;
  std::set<std::string> kernels;  // mangled names, without _Z, of what has been launched
  std::map<const void*, KernelSymbols> known;
  std::vector<SharedVariable> of_device_functions;
};

// The first object is the program itself.
int note_program(dl_phdr_info* info, std::size_t, void* data) {
  Image& image = *static_cast<Image*>(data);
  image.load_bias = info->dlpi_addr;
  image.begin = ~std::uintptr_t{0};
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD) continue;
    image.begin = std::min<std::uintptr_t>(image.begin, info->dlpi_addr + part.p_vaddr);
    image.end = std::max<std::uintptr_t>(image.end, info->dlpi_addr + part.p_vaddr + part.p_memsz);
  }
  return 1;
}

// "_ZZ<function>E<length><name>B15emulated_shared..." is a __shared__ variable of <function>.
void note_symbol(Image& image, const char* name, const ElfW(Sym) & symbol) {
  const auto address = image.load_bias + symbol.st_value;
  if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC) {
    image.functions.emplace(address, name);
    return;
  }
  const char* tag = std::strstr(name, "B15emulated_shared");
  if (ELF64_ST_TYPE(symbol.st_info) != STT_OBJECT || tag == nullptr ||
      std::strncmp(name, "_ZZ", 3) != 0)
    return;
  SharedVariable variable;
  variable.address = reinterpret_cast<void*>(address);
  variable.bytes = symbol.st_size;
  const std::string head(name + 3, tag);
  for (std::size_t e = head.rfind('E'); e != std::string::npos && e > 0;
       e = head.rfind('E', e - 1)) {
    char* after = nullptr;
    const unsigned long length = std::strtoul(head.c_str() + e + 1, &after, 10);
    if (length == 0 || std::strlen(after) != length) continue;
    variable.owner = head.substr(0, e);
    variable.name = after;
    break;
  }
  image.shared.push_back(variable);
}

void read_symbols(Image& image) {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (bytes.size() < sizeof(ElfW(Ehdr))) return;
  ElfW(Ehdr) header;
  std::memcpy(&header, bytes.data(), sizeof header);
  const auto section = [&](std::size_t index) {
    ElfW(Shdr) entry;
    std::memcpy(&entry, bytes.data() + header.e_shoff + index * header.e_shentsize, sizeof entry);
    return entry;
  };
  for (std::size_t i = 0; i < header.e_shnum; ++i) {
    const ElfW(Shdr) table = section(i);
    if (table.sh_type != SHT_SYMTAB) continue;
    const char* names = bytes.data() + section(table.sh_link).sh_offset;
    for (std::size_t at = 0; at + sizeof(ElfW(Sym)) <= table.sh_size; at += sizeof(ElfW(Sym))) {
      ElfW(Sym) symbol;
      std::memcpy(&symbol, bytes.data() + table.sh_offset + at, sizeof symbol);
      if (symbol.st_shndx != SHN_UNDEF) note_symbol(image, names + symbol.st_name, symbol);
    }
  }
}

void find_device_functions(Image& image) {
  image.of_device_functions.clear();
  for (const SharedVariable& variable : image.shared)
    if (image.kernels.count(variable.owner) == 0) image.of_device_functions.push_back(variable);
}

Image& image() {
  static Image* instance = [] {
    auto* made = new Image;
    dl_iterate_phdr(note_program, made);
    read_symbols(*made);
    find_device_functions(*made);
    return made;
  }();
  return *instance;
}

std::string readable(const std::string& mangled) {
  int status = 0;
  char* text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  if (text == nullptr) return mangled;
  std::string result = text;
  std::free(text);
  // The name without parameters: "void f<float>(float*)" -> "f<float>".
  int depth = 0;
  std::size_t end = result.size();
  for (std::size_t i = result.size(); i-- > 0;) {
    if (result[i] == ')') ++depth;
    if (result[i] == '(' && --depth == 0) {
      end = i;
      break;
    }
  }
  result.resize(end);
  if (result.rfind("void ", 0) == 0) result.erase(0, 5);
  return result;
}

}  // namespace

const KernelSymbols& symbols_of(const void* kernel) {
  Image& all = image();
  const auto found = all.known.find(kernel);
  if (found != all.known.end()) return found->second;
  KernelSymbols symbols;
  const auto function = all.functions.find(reinterpret_cast<std::uintptr_t>(kernel));
  const std::string mangled = function == all.functions.end() ? "unnamed kernel" : function->second;
  static auto& names = *new std::deque<std::string>;  // what is destroyed late still speaks of them
  symbols.name = names.emplace_back(readable(mangled)).c_str();
  const std::string encoding = mangled.rfind("_Z", 0) == 0 ? mangled.substr(2) : mangled;
  for (const SharedVariable& variable : all.shared) {
    if (variable.owner != encoding) continue;
    symbols.own.push_back(variable);
    symbols.static_shared_bytes += variable.bytes;
  }
  all.kernels.insert(encoding);
  find_device_functions(all);
  return all.known.emplace(kernel, std::move(symbols)).first->second;
}

const std::vector<SharedVariable>& shared_of_device_functions() {
  return image().of_device_functions;
}

bool in_program_image(std::uintptr_t address) {
  const Image& all = image();
  return address - all.begin < all.end - all.begin;
}

}  // namespace cuda_emulation
