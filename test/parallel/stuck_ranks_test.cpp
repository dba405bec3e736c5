// Who is named when a job stands still: from what ranks last said, without ranks.
#include "parallel/stuck_ranks.h"

#include "parallel/heartbeat.h"
#include "test/support/catch.h"

namespace openmoe::test {
namespace {

// Four ranks: the world, and the pairs {0, 1} and {2, 3}.
struct Job {
  JobGroups groups{{{"world", {0, 1, 2, 3}}, {"expert", {0, 1}}, {"expert", {2, 3}}},
                   {{0, 1}, {0, 1}, {0, 2}, {0, 2}}};
  std::vector<std::string> names = {"rank 0", "rank 1", "rank 2", "rank 3"};
  StuckLimits limits{.silence = 20.0, .idle = 100.0};
  std::vector<RankSign> signs;

  // All wait in call 7 of the world for `idle` seconds.
  explicit Job(double idle) {
    for (int r = 0; r < 4; ++r) {
      RankSign sign;
      sign.idle = idle;
      sign.state.step = 5;
      sign.state.phase = "training";
      sign.state.in_collective = true;
      sign.state.group = 0;
      sign.state.verb = "barrier";
      sign.state.entered = {7, 3};
      signs.push_back(sign);
    }
  }
  std::string verdict() const { return describe_stuck(signs, groups, names, limits); }
};

bool has(const std::string& text, const std::string& phrase) {
  INFO(text);
  return text.find(phrase) != std::string::npos;
}

}  // namespace

TEST_CASE("a job that moves has no stuck rank", "[stuck]") {
  CHECK(Job(99.0).verdict().empty());
}

TEST_CASE("a silent process is named, whatever its victims do", "[stuck]") {
  Job job(150.0);
  job.signs[2].silence = 21.0;
  const std::string verdict = job.verdict();
  CHECK(verdict.starts_with("rank 2, step 5, training: no sign of life for 21 s"));
  CHECK(has(verdict, "waiting: ranks 0, 1, 3, in barrier, call 7 of group world"));
  job.signs[2].has_left = true;  // it said good-bye: no fault of its own
  CHECK(!has(job.verdict(), "no sign of life"));
}

TEST_CASE("a rank that stands still outside collectives is named, not those that wait", "[stuck]") {
  Job job(150.0);
  job.signs[1].state.in_collective = false;
  job.signs[1].state.phase = "reading the batch";
  job.signs[1].state.entered = {6, 3};
  const std::string verdict = job.verdict();
  CHECK(verdict.starts_with("rank 1, step 5, reading the batch: no progress for 150 s"));
  CHECK(has(verdict, "last collective: barrier, call 6 of group world (ranks 0, 1, 2, 3)"));
  CHECK(has(verdict, "waiting: ranks 0, 2, 3"));
  job.signs[1].state.is_patient = true;
  CHECK(job.verdict().empty());
  job.signs[1].idle = 1001.0;
  CHECK(!job.verdict().empty());
}

TEST_CASE("a rank that computes is not stuck, until it has done so ten times too long", "[stuck]") {
  Job job(150.0);
  job.signs[3].state.in_collective = false;
  job.signs[3].state.entered = {6, 3};
  job.signs[3].idle = 0.1;
  CHECK(job.verdict().empty());
  for (int r = 0; r < 3; ++r) job.signs[static_cast<std::size_t>(r)].idle = 1001.0;
  CHECK(job.verdict().starts_with("rank 3, step 5, training: no progress for 0 s outside"));
}

TEST_CASE("who waits in one group for a rank that waits in another is followed", "[stuck]") {
  Job job(150.0);
  // 0 and 1 wait in the world for 2, which waits for 3 in their pair, which left.
  job.signs[2].state.group = 1;
  job.signs[2].state.verb = "all_to_all_rows";
  job.signs[2].state.entered = {6, 4};
  job.signs[3].state.entered = {6, 3};
  job.signs[3].has_left = true;
  const std::string verdict = job.verdict();
  CHECK(has(verdict, "rank 3, step 5, training: has left"));
  CHECK(has(verdict, "all_to_all_rows, call 4 of group expert (ranks 2, 3)"));
}

TEST_CASE("ranks that wait for each other, and a call that all entered, are said to", "[stuck]") {
  Job job(150.0);
  job.signs[2].state.group = 1;
  job.signs[2].state.entered = {6, 4};
  CHECK(has(job.verdict(), "ranks wait for each other:\n  rank 2"));
  CHECK(has(Job(150.0).verdict(), "all ranks of the group entered the call, and it does not end"));
}

TEST_CASE("of a call in a group that is not known, the rank in it is named, and late", "[stuck]") {
  Job job(150.0);
  job.signs[2].state.group = 5;
  job.signs[2].state.verb = "all_to_all_rows";
  job.signs[2].state.entered = {6, 3, 0, 0, 0, 9};
  CHECK(job.verdict().empty());
  for (RankSign& sign : job.signs) sign.idle = 1001.0;
  const std::string verdict = job.verdict();
  CHECK(verdict.starts_with(
      "rank 2, step 5, training: 1001 s in all_to_all_rows of a group that the watchdog does not "
      "know"));
  CHECK(has(verdict, "waiting: ranks 0, 1, 3, in barrier, call 7 of group world"));
  CHECK(!has(verdict, "the network between"));
}

TEST_CASE("a rank that was never heard hides no other, and is named where nothing else explains",
          "[stuck]") {
  Job job(150.0);
  const RankSign unheard = {.was_heard = false, .silence = 500.0, .state = {}};
  job.signs[3] = unheard;
  CHECK(job.verdict().starts_with("rank 3: never heard of in 500 s"));
  job.signs[1].silence = 21.0;
  const std::string verdict = job.verdict();
  CHECK(verdict.starts_with("rank 1, step 5, training: no sign of life for 21 s"));
  CHECK(!has(verdict, "rank 3: "));
  // A phase that may take long gets its time with it too.
  job = Job(150.0);
  job.signs[3] = unheard;
  for (int r = 0; r < 3; ++r) job.signs[static_cast<std::size_t>(r)].state.is_patient = true;
  CHECK(job.verdict().empty());
  // The others make progress, or have left: it may well be behind a firewall.
  job = Job(10.0);
  job.signs[3] = unheard;
  CHECK(job.verdict().empty());
  job.signs[0].idle = 150.0;
  job.signs[0].has_left = true;
  CHECK(job.verdict().empty());
}

TEST_CASE("ranks are listed, of many the first", "[stuck]") {
  CHECK(list_ranks({3}) == "rank 3");
  CHECK(list_ranks({0, 2}) == "ranks 0, 2");
  CHECK(list_ranks({0, 1, 2, 3, 4, 5, 6, 7, 8, 9}) ==
        "ranks 0, 1, 2, 3, 4, 5, 6, 7, ... (10 ranks)");
}

TEST_CASE("heartbeats travel as text; foreign and damaged ones are not read", "[stuck]") {
  Heartbeat sent;
  sent.rank = 3;
  sent.idle = 1.5;
  sent.leaves = true;
  sent.state = Job(0.0).signs[0].state;
  sent.state.changes = 99;
  const std::string text = to_text(sent, "key");
  const auto read = parse_heartbeat(text, "key");
  REQUIRE(read.has_value());
  CHECK(read->rank == 3);
  CHECK(read->leaves);
  CHECK(read->idle == 1.5);
  CHECK(read->state.changes == 99);
  CHECK(read->state.entered == sent.state.entered);
  CHECK(read->state.phase == "training");
  CHECK(!parse_heartbeat(text, "other").has_value());
  CHECK(!parse_heartbeat("key\tstate\tx" + text.substr(11), "key").has_value());
  CHECK(!parse_heartbeat("", "key").has_value());
}

TEST_CASE("datagrams arrive, and waking ends the wait", "[stuck]") {
  HeartbeatSocket a, b;
  const auto to = parse_address(b.addresses().back());
  REQUIRE(to.has_value());
  a.send("hello", *to);
  sockaddr_in from{};
  CHECK(b.receive(10000, from) == "hello");
  b.send("answer", from);
  CHECK(a.receive(10000, from) == "answer");
  CHECK(a.receive(1, from).empty());
  a.wake();
  CHECK(a.receive(1000000, from).empty());
  CHECK(!parse_address("nonsense").has_value());
}

}  // namespace openmoe::test
