#include "data/event_file.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <chrono>
#include <filesystem>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

constexpr std::array<std::uint32_t, 256> crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit)
      value = (value & 1) != 0 ? (value >> 1) ^ 0x82f63b78u : value >> 1;
    table[byte] = value;
  }
  return table;
}
constexpr std::array<std::uint32_t, 256> kCrcTable = crc_table();

std::uint32_t masked(std::uint32_t crc) {
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

template <typename T>
void append_little(std::string& bytes, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) bytes += static_cast<char>((value >> (8 * i)) & 0xff);
}

// Protocol buffers: a key of field number and wire type before each value.
enum class Wire : std::uint64_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

void append_varint(std::string& message, std::uint64_t value) {
  for (; value >= 128; value >>= 7) message += static_cast<char>((value & 127) | 128);
  message += static_cast<char>(value);
}
void append_key(std::string& message, std::uint64_t field, Wire wire) {
  append_varint(message, field << 3 | static_cast<std::uint64_t>(wire));
}
void append_bytes(std::string& message, std::uint64_t field, const std::string& bytes) {
  append_key(message, field, Wire::bytes);
  append_varint(message, bytes.size());
  message += bytes;
}

constexpr const char* kPrefix = "events.out.tfevents.";

// Of the event files in `folder` the latest time in a name, so that a new one comes after all of
// them even within a second or after a clock was set back; -1: none.
std::int64_t newest_seconds(const std::string& folder) {
  std::int64_t newest = -1;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    const char* const begin = name.data() + std::string_view(kPrefix).size();
    std::int64_t seconds = -1;
    const auto [end, problem] = std::from_chars(begin, name.data() + name.size(), seconds);
    // Ten digits, as until the year 2286: other numbers are no time, and sort differently.
    if (problem == std::errc() && end - begin == 10) newest = std::max(newest, seconds);
  }
  return newest;
}

// Event with wall_time = 1.
std::string new_event() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  append_key(event, 1, Wire::fixed64);
  append_little(event, std::bit_cast<std::uint64_t>(std::chrono::duration<double>(now).count()));
  return event;
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t crc = ~0u;
  for (const char byte : bytes)
    crc = kCrcTable[(crc ^ static_cast<unsigned char>(byte)) & 0xff] ^ (crc >> 8);
  return ~crc;
}

EventFile::EventFile(const std::string& folder, std::int64_t first_step) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw UserError(folder + ": cannot create the folder: " + error.message());
  char host[256] = "host";
  gethostname(host, sizeof host - 1);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const std::int64_t seconds = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  path_ = concat(folder, "/", kPrefix, std::max(seconds, newest_seconds(folder) + 1), ".", host,
                 ".", first_step);
  file_.open(path_, std::ios::binary | std::ios::trunc);
  if (!file_) throw UserError(path_ + ": cannot be written; choose another --out");
  std::string event = new_event();
  append_bytes(event, 3, "brain.Event:2");  // file_version
  write_record(event);
  start(first_step);
}

void EventFile::start(std::int64_t first_step) {
  std::string log, event = new_event();
  append_key(log, 1, Wire::varint);  // status
  append_varint(log, 1);             // START
  append_key(event, 2, Wire::varint);
  append_varint(event, static_cast<std::uint64_t>(first_step));
  append_bytes(event, 7, log);  // session_log
  write_record(event);
}

void EventFile::write(std::int64_t step,
                      const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, number] : scalars) {
    std::string value;
    append_bytes(value, 1, tag);
    append_key(value, 2, Wire::fixed32);  // simple_value
    append_little(value, std::bit_cast<std::uint32_t>(static_cast<float>(number)));
    append_bytes(summary, 1, value);
  }
  std::string event = new_event();
  append_key(event, 2, Wire::varint);
  append_varint(event, static_cast<std::uint64_t>(step));
  append_bytes(event, 5, summary);
  write_record(event);
}

void EventFile::write_record(const std::string& event) {
  std::string frame;
  append_little(frame, static_cast<std::uint64_t>(event.size()));
  append_little(frame, masked(crc32c(frame)));
  frame += event;
  append_little(frame, masked(crc32c(event)));
  file_.write(frame.data(), static_cast<std::streamsize>(frame.size()));
  file_.flush();
  if (!file_) throw RuntimeFault(path_ + ": cannot be written");
}

}  // namespace openmoe
