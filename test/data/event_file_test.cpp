// TensorBoard's event files, byte by byte; the real TensorBoard reads them in test/python.
#include "data/event_file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "test/support/catch.h"
#include "test/support/scratch.h"

namespace openmoe::test {

TEST_CASE("CRC-32C of known texts", "[events]") {
  CHECK(crc32c("") == 0u);
  CHECK(crc32c("123456789") == 0xe3069283u);            // the check value of the Castagnoli CRC
  CHECK(crc32c(std::string(32, '\0')) == 0x8a9136aau);  // RFC 3720, B.4
}

TEST_CASE("an event file is a sequence of whole frames", "[events]") {
  const Scratch folder;
  {
    EventFile events(folder.path("tb"), 3);
    events.write(3, {{"loss", 2.5}});
    events.write(300, {{"loss", 2.0}, {"routing/x", 0.0}});
    events.start(299);  // the run goes back
  }
  std::string bytes;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path("tb"))) {
    CHECK(entry.path().filename().string().starts_with("events.out.tfevents."));
    bytes = Scratch::read(entry.path());
  }
  std::vector<std::string> events;
  for (std::size_t at = 0; at < bytes.size();) {
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data() + at, sizeof length);
    REQUIRE(at + 16 + length <= bytes.size());
    events.push_back(bytes.substr(at + 12, length));
    at += 16 + length;
  }
  REQUIRE(events.size() == 5);
  CHECK(events[0].substr(9) ==
        "\x1a\x0d"
        "brain.Event:2");
  // step 3; summary of 12 bytes: value of 10: tag "loss", simple_value 2.5 = 0x40200000
  const std::string expected("\x10\x03\x2a\x0d\x0a\x0b\x0a\x04loss\x15\x00\x00\x20\x40", 17);
  CHECK(events[2].substr(9) == expected);
  CHECK(events[3].substr(9, 3) == "\x10\xac\x02");  // 300 as a varint
  // step; session_log (7) of 2 bytes: status (1) START = 1
  CHECK(events[1].substr(9) == "\x10\x03\x3a\x02\x08\x01");
  CHECK(events[4].substr(9) == "\x10\xab\x02\x3a\x02\x08\x01");
}

// The reader takes files by name, and of steps that are started again what comes later.
TEST_CASE("an event file sorts after those that were there", "[events]") {
  const Scratch folder;
  std::vector<std::string> names;
  for (const std::int64_t first : {10, 3, 3, 0}) {
    const EventFile events(folder.path("tb"), first);
    for (const auto& entry : std::filesystem::directory_iterator(folder.path("tb")))
      if (std::find(names.begin(), names.end(), entry.path().string()) == names.end())
        names.push_back(entry.path().string());
  }
  CHECK(names.size() == 4);
  CHECK(std::is_sorted(names.begin(), names.end()));
}

}  // namespace openmoe::test
