#include "test/cuda_emulation/runtime/scheduler.h"

#include <sys/mman.h>

#include <array>
#include <boost/context/detail/fcontext.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "emulation/thread.h"
#include "emulation/warp.h"
#include "test/cuda_emulation/runtime/sanitizer.h"
#include "test/cuda_emulation/runtime/violation.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace cuda_emulation {

constinit thread_local bool t_watched = false;

namespace {

namespace context = boost::context::detail;

constexpr std::size_t kStackBytes = 256 << 10;
constexpr std::size_t kStackGuardBytes = 64 << 10;
constexpr std::uint32_t kMaxThreads = 1024;
constexpr std::uint32_t kLanes = 32;

struct Fiber {
  context::fcontext_t resume = nullptr;  // null: has not started
  char* stack = nullptr;                 // lowest address, above the guard
  std::size_t stack_bytes = 0;
  void* sanitizer_state = nullptr;
};

enum class Waiting { no, barrier, warp };

struct Thread {
  Fiber* fiber = nullptr;  // null: has not started
  uint3 index{};
  bool finished = false;
  Waiting waiting = Waiting::no;
  Site site{"", 0};
};

// A warp operation in flight. Two sets of values alternate, because a lane may reach the next
// operation of the same mask before the others have read the results of this one.
struct Exchange {
  std::uint32_t mask = 0;
  std::uint32_t arrived = 0;
  std::uint32_t phase = 0;
  WarpKind kind = WarpKind::sync;
  int bytes = 0;
  Site site{"", 0};
  std::uint32_t present[2] = {};
  std::uint64_t values[2][kLanes] = {};
};

struct Warp {
  std::uint32_t gone = 0;          // lanes that do not exist or have returned
  std::deque<Exchange> exchanges;  // addresses stay: waiting lanes read the results there
  std::size_t num_exchanges = 0;   // in use by this block, one per mask
};

struct Barrier {
  std::uint32_t arrived = 0;
  BarrierKind kind = BarrierKind::plain;
  Site site{"", 0};
  int count = 0;  // of predicates that hold
  int result = 0;
};

enum class Order { first_in_first_out, last_in_first_out, random };

struct Scheduler {
  const Grid* grid = nullptr;
  std::uint32_t num_threads = 0;
  std::uint32_t num_finished = 0;
  std::uint32_t current = 0;
  Order order = Order::first_in_first_out;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  // Threads that can run: a ring of thread numbers.
  std::array<std::uint32_t, kMaxThreads> ready{};
  std::uint32_t first_ready = 0;
  std::uint32_t num_ready = 0;
  std::vector<Fiber*> fibers;
  std::vector<Fiber*> free_fibers;
  Fiber* running = nullptr;
  context::fcontext_t host = nullptr;
  void* host_sanitizer_state = nullptr;
  const void* host_stack = nullptr;
  std::size_t host_stack_bytes = 0;
  bool active = false;
  bool fenced = false;
  std::string fault;
  std::int64_t switches = 0;
  std::uint64_t random_state = 0;
};

// Only the host thread that holds the API lock uses it; others ask t_in_kernel.
Scheduler g_scheduler;
thread_local bool t_in_kernel = false;

Fiber* make_fiber() {
  void* p = mmap(nullptr, kStackBytes + kStackGuardBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED || mprotect(p, kStackGuardBytes, PROT_NONE) != 0) {
    std::perror("mmap of a fiber's stack");
    std::abort();
  }
  auto* fiber = new Fiber;
  fiber->stack = static_cast<char*>(p) + kStackGuardBytes;
  // Tops at different offsets within a page: otherwise the hot ends of all stacks share a few cache
  // sets.
  fiber->stack_bytes = kStackBytes - 192 * (g_scheduler.fibers.size() % 20);
  g_scheduler.fibers.push_back(fiber);
  return fiber;
}

Fiber* take_fiber() {
  Scheduler& s = g_scheduler;
  if (s.free_fibers.empty()) return make_fiber();
  Fiber* fiber = s.free_fibers.back();
  s.free_fibers.pop_back();
  return fiber;
}

void make_ready(std::uint32_t thread) {
  Scheduler& s = g_scheduler;
  s.ready[(s.first_ready + s.num_ready++) % kMaxThreads] = thread;
}

std::uint32_t take_ready() {
  Scheduler& s = g_scheduler;
  std::uint32_t& head = s.ready[s.first_ready];
  if (s.order != Order::first_in_first_out) {
    const std::uint32_t pick = s.order == Order::random
                                   ? static_cast<std::uint32_t>(schedule_random() % s.num_ready)
                                   : s.num_ready - 1;
    std::swap(head, s.ready[(s.first_ready + pick) % kMaxThreads]);
  }
  const std::uint32_t thread = head;
  s.first_ready = (s.first_ready + 1) % kMaxThreads;
  --s.num_ready;
  return thread;
}

void make_current(std::uint32_t thread) {
  g_scheduler.current = thread;
  threadIdx = g_scheduler.threads[thread].index;
}

void fiber_main(context::transfer_t from);

// Leaves the stack that runs for another; returns when somebody comes back to it. A null fiber is
// the host's own stack.
void jump(Fiber* from, Fiber* to) {
  Scheduler& s = g_scheduler;
  ++s.switches;
  if (to != nullptr && to->resume == nullptr)
    to->resume = context::make_fcontext(to->stack + to->stack_bytes, to->stack_bytes, fiber_main);
  context::fcontext_t* slot = from == nullptr ? &s.host : &from->resume;
  void** state = from == nullptr ? &s.host_sanitizer_state : &from->sanitizer_state;
  if (to == nullptr)
    begin_switch(state, s.host_stack, s.host_stack_bytes);
  else
    begin_switch(state, to->stack, to->stack_bytes);
  s.running = to;
  const context::transfer_t back =
      context::jump_fcontext(to == nullptr ? s.host : to->resume, slot);
  *static_cast<context::fcontext_t*>(back.data) = back.fctx;
  end_switch(*state, nullptr, nullptr);
}

[[noreturn]] void report_deadlock();

// The running thread cannot go on: runs others until it can.
void wait_for_turn() {
  Scheduler& s = g_scheduler;
  const std::uint32_t me = s.current;
  if (s.num_ready == 0) report_deadlock();
  const std::uint32_t next = take_ready();
  make_current(next);
  if (next == me) return;
  Thread& thread = s.threads[next];
  if (thread.fiber == nullptr) thread.fiber = take_fiber();
  jump(s.threads[me].fiber, thread.fiber);
}

std::string place(Site site) {
  return text(site.file, ":", site.line);
}
std::string name(uint3 index) {
  return text("(", index.x, ", ", index.y, ", ", index.z, ")");
}

// "threads (1, 0, 0), (2, 0, 0) and 30 more"
template <typename Condition>
std::string list_threads(Condition condition) {
  std::string list;
  int count = 0;
  for (const Thread& thread : g_scheduler.threads) {
    if (!condition(thread)) continue;
    if (++count <= 4) list += (count > 1 ? ", " : "") + name(thread.index);
  }
  if (count > 4) list += text(" and ", count - 4, " more");
  return (count == 1 ? "thread " : "threads ") + list;
}

void report_deadlock() {
  std::string message = text("kernel ", g_scheduler.grid->kernel_name, ", block ", name(blockIdx),
                             ": no thread can go on");
  const auto at_barrier = [](const Thread& t) { return t.waiting == Waiting::barrier; };
  const auto in_warp = [](const Thread& t) { return t.waiting == Waiting::warp; };
  for (const Thread& thread : g_scheduler.threads)
    if (at_barrier(thread)) {
      message += text("; at __syncthreads (", place(thread.site), "): ", list_threads(at_barrier));
      break;
    }
  for (const Thread& thread : g_scheduler.threads)
    if (in_warp(thread)) {
      message += text("; at a warp operation (", place(thread.site),
                      ") whose other lanes never came: ", list_threads(in_warp));
      break;
    }
  stop_kernel(message);
}

[[noreturn]] void report_divergent_barrier(const std::string& what, Site site) {
  const auto waiting = [](const Thread& t) { return t.waiting == Waiting::barrier; };
  const auto finished = [](const Thread& t) { return t.finished; };
  std::string message =
      text("kernel ", g_scheduler.grid->kernel_name, ", block ", name(blockIdx),
           ": divergent __syncthreads: ", what, "; at ", place(site), ": ", list_threads(waiting));
  if (g_scheduler.num_finished > 0) message += text("; returned: ", list_threads(finished));
  stop_kernel(message);
}

// Lets the lanes of an exchange go on when all that it waits for have come.
void complete(Warp& warp, std::uint32_t warp_index, Exchange& exchange) {
  if (exchange.arrived == 0 || ((exchange.arrived | warp.gone) & exchange.mask) != exchange.mask)
    return;
  exchange.present[exchange.phase] = exchange.arrived;
  for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
    const std::uint32_t thread = warp_index * kLanes + lane;
    if ((exchange.arrived >> lane & 1u) == 0 ||
        g_scheduler.threads[thread].waiting != Waiting::warp)
      continue;
    g_scheduler.threads[thread].waiting = Waiting::no;
    make_ready(thread);
  }
  exchange.arrived = 0;
  exchange.phase ^= 1u;
}

void finish_thread() {
  Scheduler& s = g_scheduler;
  Thread& thread = s.threads[s.current];
  thread.finished = true;
  thread.fiber = nullptr;
  ++s.num_finished;
  if (s.barrier.arrived > 0) report_divergent_barrier("some threads have returned", s.barrier.site);
  Warp& warp = s.warps[s.current / kLanes];
  warp.gone |= 1u << (s.current % kLanes);
  for (std::size_t i = 0; i < warp.num_exchanges; ++i)
    complete(warp, s.current / kLanes, warp.exchanges[i]);
}

// Runs threads of the block, one after another while they do not wait.
void fiber_main(context::transfer_t from) {
  *static_cast<context::fcontext_t*>(from.data) = from.fctx;
  Scheduler& s = g_scheduler;
  Fiber* const self = s.running;
  end_switch(nullptr, s.host_stack == nullptr ? &s.host_stack : nullptr,
             s.host_stack_bytes == 0 ? &s.host_stack_bytes : nullptr);
  for (;;) {
    t_watched = true;
    s.grid->invoke(s.grid->arguments);
    t_watched = false;
    finish_thread();
    Fiber* next_fiber = nullptr;
    if (s.num_ready > 0) {
      const std::uint32_t next = take_ready();
      make_current(next);
      Thread& thread = s.threads[next];
      if (thread.fiber == nullptr) {
        thread.fiber = self;
        continue;
      }
      next_fiber = thread.fiber;
    } else if (s.num_finished < s.num_threads) {
      report_deadlock();
    }
    s.free_fibers.push_back(self);
    jump(self, next_fiber);
  }
}

void choose_order() {
  Scheduler& s = g_scheduler;
  s.order = Order::first_in_first_out;
  if (s.random_state == 0) return;
  switch (schedule_random() % 4) {
    case 0:
      s.order = Order::first_in_first_out;
      break;
    case 1:
      s.order = Order::last_in_first_out;
      break;
    default:
      s.order = Order::random;
  }
}

void prepare_block(const Grid& grid, uint3 block) {
  Scheduler& s = g_scheduler;
  s.grid = &grid;
  s.num_threads = grid.block_size.x * grid.block_size.y * grid.block_size.z;
  s.num_finished = 0;
  s.fault.clear();
  s.barrier = Barrier{};
  s.first_ready = s.num_ready = 0;
  s.threads.assign(s.num_threads, Thread{});
  s.warps.resize((s.num_threads + kLanes - 1) / kLanes);
  for (Warp& warp : s.warps) {
    warp.gone = 0;
    warp.num_exchanges = 0;
  }
  if (s.num_threads % kLanes != 0) s.warps.back().gone = ~0u << (s.num_threads % kLanes);
  choose_order();
  for (std::uint32_t i = 0; i < s.num_threads; ++i) {
    const dim3& size = grid.block_size;
    s.threads[i].index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    make_ready(i);
  }
  blockIdx = block;
  blockDim = grid.block_size;
  gridDim = grid.grid_size;
}

}  // namespace

std::string run_block(const Grid& grid, uint3 block) {
  Scheduler& s = g_scheduler;
  prepare_block(grid, block);
  const std::uint32_t first = take_ready();
  make_current(first);
  s.threads[first].fiber = take_fiber();
  t_in_kernel = true;
  jump(nullptr, s.threads[first].fiber);
  t_in_kernel = false;
  t_watched = false;
  if (!s.fault.empty()) {
    // Stacks were left in the middle: every fiber starts anew.
    s.free_fibers = s.fibers;
    for (Fiber* fiber : s.fibers) fiber->resume = nullptr;
  }
  return std::exchange(s.fault, "");
}

bool in_kernel() {
  return t_in_kernel;
}

void stop_kernel(const std::string& message) {
  Scheduler& s = g_scheduler;
  s.fault = message;
  jump(s.running, nullptr);
  std::abort();  // nobody resumes this stack
}

std::string describe_thread() {
  return text("kernel ", g_scheduler.grid->kernel_name, ", block ", name(blockIdx), ", thread ",
              name(threadIdx));
}

bool on_running_stack(std::uintptr_t address) {
  const Fiber* fiber = g_scheduler.running;
  return fiber != nullptr && address - reinterpret_cast<std::uintptr_t>(fiber->stack) < kStackBytes;
}

bool in_guard_of_running_stack(std::uintptr_t address) {
  const Fiber* fiber = g_scheduler.running;
  return fiber != nullptr &&
         reinterpret_cast<std::uintptr_t>(fiber->stack) - address - 1 < kStackGuardBytes;
}

std::int64_t num_switches() {
  return g_scheduler.switches;
}
bool fence_used() {
  return g_scheduler.fenced;
}
void begin_launch() {
  g_scheduler.fenced = false;
}

void seed_schedule(std::uint64_t seed) {
  g_scheduler.random_state = seed == 0 ? 0 : seed * 0x9e3779b97f4a7c15u | 1u;
}

std::uint64_t schedule_random() {
  std::uint64_t& x = g_scheduler.random_state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x * 0x2545f4914f6cdd1du >> 16;
}

int block_barrier(BarrierKind kind, int predicate, Site site) {
  if (!t_in_kernel) violation(text("__syncthreads outside a kernel, at ", place(site)));
  const Unwatched unwatched;
  Scheduler& s = g_scheduler;
  Barrier& barrier = s.barrier;
  Thread& thread = s.threads[s.current];
  const auto fail_here = [&](const std::string& what) {
    thread.waiting = Waiting::barrier;
    report_divergent_barrier(what, site);
  };
  if (s.num_finished > 0) fail_here("some threads have returned");
  if (barrier.arrived == 0) {
    barrier.kind = kind;
    barrier.site = site;
    barrier.count = 0;
  } else if (barrier.kind != kind || barrier.site.line != site.line ||
             std::strcmp(barrier.site.file, site.file) != 0) {
    fail_here(text("others of the block wait at ", place(barrier.site)));
  }
  barrier.count += predicate != 0 ? 1 : 0;
  if (++barrier.arrived < s.num_threads) {
    thread.waiting = Waiting::barrier;
    thread.site = site;
    wait_for_turn();
    return barrier.result;
  }
  const int total = static_cast<int>(s.num_threads);
  barrier.result = kind == BarrierKind::count ? barrier.count
                   : kind == BarrierKind::all ? (barrier.count == total ? 1 : 0)
                                              : (barrier.count > 0 ? 1 : 0);
  barrier.arrived = 0;
  for (std::uint32_t i = 0; i < s.num_threads; ++i) {
    s.threads[i].waiting = Waiting::no;
    make_ready(i);
  }
  wait_for_turn();
  return barrier.result;
}

void thread_fence() {
  g_scheduler.fenced = true;
}

void kernel_trap(Site site) {
  violation(text("__trap at ", place(site)));
}

int lane_index() {
  return static_cast<int>(g_scheduler.current % kLanes);
}

std::uint64_t value_bits(const WarpValues& all, int lane, Site site) {
  if ((all.present >> lane & 1u) != 0) return all.values[lane];
  const Unwatched unwatched;
  violation(text("value of lane ", lane, ", which does not take part in the warp operation at ",
                 place(site)));
}

namespace {

Exchange& exchange_of(Warp& warp, std::uint32_t mask) {
  for (std::size_t i = 0; i < warp.num_exchanges; ++i)
    if (warp.exchanges[i].mask == mask) return warp.exchanges[i];
  if (warp.num_exchanges == warp.exchanges.size()) warp.exchanges.emplace_back();
  Exchange& exchange = warp.exchanges[warp.num_exchanges++];
  exchange.mask = mask;
  exchange.arrived = 0;
  exchange.phase = 0;
  return exchange;
}

}  // namespace

WarpValues warp_exchange(std::uint32_t mask, WarpKind kind, std::uint64_t value, int bytes,
                         Site site) {
  if (!t_in_kernel) violation(text("warp operation outside a kernel, at ", place(site)));
  const Unwatched unwatched;
  Scheduler& s = g_scheduler;
  const std::uint32_t lane = s.current % kLanes;
  if ((mask >> lane & 1u) == 0)
    violation(text("lane ", lane, " is not in the mask ", std::hex, mask,
                   " of its warp operation at ", place(site)));
  Thread& thread = s.threads[s.current];
  Warp& warp = s.warps[s.current / kLanes];
  Exchange& exchange = exchange_of(warp, mask);
  if (exchange.arrived == 0) {
    exchange.kind = kind;
    exchange.bytes = bytes;
    exchange.site = site;
  } else if (exchange.kind != kind || exchange.bytes != bytes) {
    violation(text("lanes of a warp meet in different operations: ", place(exchange.site), " and ",
                   place(site)));
  }
  const std::uint32_t phase = exchange.phase;
  exchange.values[phase][lane] = value;
  exchange.arrived |= 1u << lane;
  thread.site = site;
  thread.waiting = Waiting::warp;
  // The last lane goes on at once or queues behind the others.
  const bool give_way = s.random_state != 0 && schedule_random() % 2 == 0;
  const bool last = ((exchange.arrived | warp.gone) & mask) == mask;
  if (last && !give_way) thread.waiting = Waiting::no;
  complete(warp, s.current / kLanes, exchange);
  if (!last || give_way) wait_for_turn();
  return {exchange.values[phase], exchange.present[phase]};
}

}  // namespace cuda_emulation
