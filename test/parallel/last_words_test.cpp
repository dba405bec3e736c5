// What a rank says before it ends must have left the pipe to the launcher.
#include "parallel/last_words.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <string>
#include <thread>

#include "test/support/catch.h"

namespace openmoe::test {
namespace {

using std::chrono::milliseconds;

struct Pipe {
  Pipe() { REQUIRE(pipe(ends.data()) == 0); }
  ~Pipe() {
    for (const int end : ends) close(end);
  }
  std::array<int, 2> ends{};  // to read, to write
};

}  // namespace

TEST_CASE("a pipe is waited for until it is read, or no longer than was said", "[last_words]") {
  const Pipe pipe;
  const int to = pipe.ends[1];
  CHECK(wait_until_read(to, milliseconds(0)));  // empty
  const std::string words = "the last ones";
  REQUIRE(write(to, words.data(), words.size()) == static_cast<ssize_t>(words.size()));
  CHECK_FALSE(wait_until_read(to, milliseconds(20)));
  std::atomic<bool> is_read{false};
  std::thread reader([&] {
    std::this_thread::sleep_for(milliseconds(50));
    std::array<char, 64> text{};
    is_read = true;
    if (read(pipe.ends[0], text.data(), text.size()) < 0) is_read = false;
  });
  CHECK(wait_until_read(to, milliseconds(60000)));
  CHECK(is_read);
  reader.join();
}

TEST_CASE("a file is not waited for", "[last_words]") {
  const int file = open("/proc/self/exe", O_RDONLY);
  REQUIRE(file >= 0);
  CHECK(wait_until_read(file, milliseconds(0)));
  close(file);
}

}  // namespace openmoe::test
