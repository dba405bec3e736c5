// Faults that end the process: seen from a child.
#include <cuda_runtime.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "test/cuda_emulation/support.h"
#include "test/support/catch.h"

using namespace cuda_emulation::test;
using Catch::Matchers::Contains;

namespace {

struct Ending {
  int signal = 0;
  std::string errors;
};

// Runs `action` in a child process of its own.
template <typename Action>
Ending in_child(Action action) {
  int pipe_ends[2];
  if (pipe(pipe_ends) != 0) throw std::runtime_error("pipe");
  const pid_t child = fork();
  if (child == 0) {
    dup2(pipe_ends[1], STDERR_FILENO);
    close(pipe_ends[0]);
    // Nobody else's handler: the signal must end the child.
    signal(SIGSEGV, SIG_DFL);
    action();
    _exit(0);
  }
  close(pipe_ends[1]);
  Ending ending;
  char buffer[512];
  for (ssize_t n; (n = read(pipe_ends[0], buffer, sizeof buffer)) > 0;)
    ending.errors.append(buffer, static_cast<std::size_t>(n));
  close(pipe_ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) ending.signal = WTERMSIG(status);
  return ending;
}

__global__ void deep_kernel(volatile int* y, int depth) {
  volatile char room[40000];
  room[depth] = 1;
  if (depth > 0) deep_kernel(y, depth - 1);
  y[0] = room[depth];
}

}  // namespace

TEST_CASE("host code that follows a device pointer ends with an explanation") {
  const Ending reading = in_child([] {
    float* x = nullptr;
    require(cudaMalloc(&x, 400));
    require(cudaMemset(x, 0, 400));
    _exit(x[3] > 0.0f ? 1 : 2);
  });
  CHECK(reading.signal == SIGSEGV);
  CHECK_THAT(reading.errors, Contains("host code follows a device pointer: byte 12 of"));
  const Ending after_launch = in_child([] {
    volatile int* y = nullptr;
    require(cudaMalloc(const_cast<int**>(&y), 4));
    require(launch(deep_kernel, 1, 1, 0, nullptr, y, 0));
    y[0] = 5;
  });
  CHECK(after_launch.signal == SIGSEGV);
  CHECK_THAT(after_launch.errors, Contains("host code follows a device pointer: byte 0 of"));
}

TEST_CASE("a kernel that overflows its stack ends with an explanation") {
  const Ending ending = in_child([] {
    volatile int* y = nullptr;
    require(cudaMalloc(const_cast<int**>(&y), 4));
    launch(deep_kernel, 1, 1, 0, nullptr, y, 100);
  });
  CHECK(ending.signal == SIGSEGV);
  CHECK_THAT(ending.errors,
             Contains("deep_kernel") && Contains("more than 256 KiB of local variables"));
}
