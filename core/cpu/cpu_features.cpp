#include "core/cpu/cpu_features.h"

#include <atomic>
#include <cstdlib>
#include <string>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe::cpu {
namespace {

constexpr CpuIsa kAllIsas[] = {CpuIsa::generic, CpuIsa::avx2, CpuIsa::avx512, CpuIsa::avx512_bf16};
constexpr int kUnset = -1;

std::atomic<int> g_forced_isa{kUnset};

#if defined(__x86_64__)
CpuIsa detect() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CpuIsa::generic;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx512) return CpuIsa::avx2;
  return __builtin_cpu_supports("avx512bf16") ? CpuIsa::avx512_bf16 : CpuIsa::avx512;
}
#else
CpuIsa detect() {
  return CpuIsa::generic;
}
#endif

std::string names_up_to(CpuIsa best) {
  std::string names;
  for (const CpuIsa isa : kAllIsas) {
    if (isa <= best) names += std::string(names.empty() ? "" : ", ") + name_of(isa);
  }
  return names;
}

}  // namespace

const char* name_of(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::generic:
      return "generic";
    case CpuIsa::avx2:
      return "avx2";
    case CpuIsa::avx512:
      return "avx512";
    case CpuIsa::avx512_bf16:
      return "avx512_bf16";
  }
  return "?";
}

CpuIsa best_cpu_isa() {
  static const CpuIsa best = detect();
  return best;
}

std::vector<CpuIsa> available_cpu_isas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : kAllIsas) {
    if (isa <= best_cpu_isa()) isas.push_back(isa);
  }
  return isas;
}

CpuIsa choose_cpu_isa(const char* requested, CpuIsa best) {
  if (requested == nullptr || *requested == '\0') return best;
  for (const CpuIsa isa : kAllIsas) {
    if (std::string(requested) != name_of(isa)) continue;
    if (isa <= best) return isa;
    throw UserError(concat("environment variable OPENMOE_CPU_ISA: this CPU has no ", requested,
                           "; it can run ", names_up_to(best), "; unset it to use ",
                           name_of(best)));
  }
  throw UserError(concat("environment variable OPENMOE_CPU_ISA: unknown instruction set \"",
                         requested, "\"; allowed here: ", names_up_to(best), "; unset it to use ",
                         name_of(best)));
}

CpuIsa cpu_isa() {
  const int forced = g_forced_isa.load(std::memory_order_relaxed);
  if (forced != kUnset) return static_cast<CpuIsa>(forced);
  static const CpuIsa chosen = choose_cpu_isa(std::getenv("OPENMOE_CPU_ISA"), best_cpu_isa());
  return chosen;
}

ScopedCpuIsa::ScopedCpuIsa(CpuIsa isa) : previous_(g_forced_isa.load()) {
  OPENMOE_CHECK(isa <= best_cpu_isa(), "this CPU has no ", name_of(isa));
  g_forced_isa = static_cast<int>(isa);
}

ScopedCpuIsa::~ScopedCpuIsa() {
  g_forced_isa = previous_;
}

}  // namespace openmoe::cpu
