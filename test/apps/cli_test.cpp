// The command line and the end of a job: exit codes, one message, nobody left waiting.
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

#include "test/support/catch.h"
#include "test/support/run_command.h"

namespace openmoe::test {
namespace {

std::size_t count(const std::string& text, const std::string& phrase) {
  std::size_t times = 0;
  for (std::size_t at = text.find(phrase); at != std::string::npos; at = text.find(phrase, at + 1))
    ++times;
  return times;
}

// `arguments` on two ranks, where $RANK is the rank.
CommandResult run_by_rank(const std::string& arguments) {
  const std::string binary = OPENMOE_TEST_BINARY;
  return run_command("OMP_NUM_THREADS=1 " + source_path("scripts/mpirun.sh") +
                     " -np 2 sh -c 'RANK=$OMPI_COMM_WORLD_RANK; exec " + binary + " " + arguments +
                     "'");
}

}  // namespace

TEST_CASE("wrong input is one message and exit code 2 on any number of ranks", "[cli]") {
  TemporaryFolder folder;
  write_file(folder / "r.json",
             R"({"modell": {}, "data": {"phases": [{"objective": "ul2", "mixture": "m"}]}})");
  for (const int ranks : {1, 2}) {
    const CommandResult result = run_openmoe(ranks, "plan " + (folder / "r.json"));
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(count(result.output, "openmoe: error") == 1);
    CHECK(count(result.output, "r.json: modell: unknown key") == 1);
    CHECK(count(result.output, "did you mean model") == 1);
  }
}

TEST_CASE("the command line itself is checked", "[cli]") {
  const std::string recipe = source_path("recipes/quickstart.json");
  for (const std::string& arguments :
       {std::string("plan --jsn ") + recipe, std::string("plam"), std::string(""),
        std::string("plan"), "plan " + recipe + " --threads 0", "plan " + recipe + " --set"}) {
    const CommandResult result = run_openmoe(1, arguments);
    INFO(arguments << "\n" << result.output);
    CHECK(result.exit_code == 2);
    CHECK(count(result.output, "openmoe: error: ") == 1);
    CHECK(count(result.output, "--help") >= 1);
  }
  CHECK(run_openmoe(1, "--version").output.find("openmoe ") == 0);
  const CommandResult help = run_openmoe(2, "--help");
  CHECK(help.exit_code == 0);
  for (const char* command : {"train", "prepare", "plan", "selftest", "info"})
    CHECK(count(help.output, std::string("\n  ") + command + " ") == 1);
  CHECK(run_openmoe(1, "plan --keys").output.find("model.num_layers\n") != std::string::npos);
}

// mpirun puts what it has read of each rank's stdout and stderr together as it comes.
TEST_CASE("a message of failure is written in one piece", "[cli]") {
  std::array<int, 2> ends{};  // of a socket on which every write stays apart
  REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends.data()) == 0);
  const std::string command =
      "bash -c '" OPENMOE_TEST_BINARY " plam 2>&" + std::to_string(ends[0]) + "'";
  CHECK(std::system(command.c_str()) != 0);
  std::array<char, 1024> text{};
  const ssize_t size = recv(ends[1], text.data(), text.size(), MSG_DONTWAIT);
  REQUIRE(size > 0);
  const std::string piece(text.data(), static_cast<std::size_t>(size));
  CHECK(piece.find("openmoe: error: ") == 0);
  CHECK(piece.find("--help for the options.\n") != std::string::npos);
  for (const int end : ends) close(end);
}

TEST_CASE("a rank that fails alone ends the job", "[cli]") {
  TemporaryFolder folder;
  write_file(
      folder / "r0.json",
      R"({"data": {"phases": [{"objective": "ul2", "mixture": "m"}]}, "parallel": {"ep": 2}})");
  SECTION("while the other works") {
    const CommandResult result = run_by_rank("plan " + (folder / "r$RANK.json"));
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(count(result.output, "openmoe: error on rank 1: recipe " + (folder / "r1.json")) == 1);
  }
  SECTION("while the other waits for it in a collective") {
    const CommandResult result = run_by_rank("train " + (folder / "r$RANK.json") + " --data " +
                                             folder.path() + " --out " + (folder / "run"));
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(count(result.output, "openmoe: error on rank 1: recipe " + (folder / "r1.json")) == 1);
  }
}

TEST_CASE("threads follow the option, then the environment", "[cli]") {
  const auto threads = [](const std::string& command) {
    const CommandResult result = run_command(command);
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
    return nlohmann::json::parse(result.output).at("threads_per_rank").get<int>();
  };
  const std::string info = OPENMOE_TEST_BINARY " info --json";
  CHECK(threads("OMP_NUM_THREADS=3 " + info) == 3);
  CHECK(threads("OMP_NUM_THREADS=3 " + info + " --threads 2") == 2);
  const int alone = threads("env -u OMP_NUM_THREADS " + info);
  const int shared =
      threads("env -u OMP_NUM_THREADS " + source_path("scripts/mpirun.sh") + " -np 2 " + info);
  CHECK(shared == std::max(1, alone / 2));
}

}  // namespace openmoe::test
