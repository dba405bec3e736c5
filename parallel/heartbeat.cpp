#include "parallel/heartbeat.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

constexpr std::size_t kMaxDatagram = 60000;

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == separator)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

}  // namespace

std::string to_text(const Heartbeat& heartbeat, const std::string& key) {
  const RankState& state = heartbeat.state;
  std::string counts;
  for (const std::int64_t count : state.entered) counts += std::to_string(count) + " ";
  const bool is_verdict = heartbeat.kind == Heartbeat::Kind::verdict;
  return concat(key, '\t', is_verdict ? "verdict" : "state", '\t', heartbeat.rank, '\t',
                heartbeat.leaves ? 1 : 0, '\t', heartbeat.idle, '\t', state.changes, '\t',
                state.step, '\t', state.phase, '\t', state.is_patient ? 1 : 0, '\t',
                state.in_collective ? 1 : 0, '\t', state.group, '\t', state.verb, '\t', counts);
}

std::optional<Heartbeat> parse_heartbeat(const std::string& text, const std::string& key) {
  const std::vector<std::string> fields = split(text, '\t');
  if (fields.size() != 13 || fields[0] != key) return std::nullopt;
  Heartbeat heartbeat;
  heartbeat.kind = fields[1] == "verdict" ? Heartbeat::Kind::verdict : Heartbeat::Kind::state;
  RankState& state = heartbeat.state;
  try {
    heartbeat.rank = std::stoi(fields[2]);
    heartbeat.leaves = fields[3] == "1";
    heartbeat.idle = std::stod(fields[4]);
    state.changes = std::stoull(fields[5]);
    state.step = std::stoll(fields[6]);
    state.group = std::stoi(fields[10]);
  } catch (const std::exception&) {
    return std::nullopt;
  }
  state.phase = fields[7];
  state.is_patient = fields[8] == "1";
  state.in_collective = fields[9] == "1";
  state.verb = fields[11];
  std::istringstream counts(fields[12]);
  for (std::int64_t count; counts >> count;) state.entered.push_back(count);
  return heartbeat;
}

HeartbeatSocket::HeartbeatSocket() : buffer_(kMaxDatagram) {
  socket_ = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  wake_ = eventfd(0, EFD_CLOEXEC);
  sockaddr_in any{};
  any.sin_family = AF_INET;
  any.sin_addr.s_addr = htonl(INADDR_ANY);
  if (socket_ >= 0 && wake_ >= 0 &&
      bind(socket_, reinterpret_cast<const sockaddr*>(&any), sizeof any) == 0)
    return;
  const std::string reason = std::strerror(errno);
  if (socket_ >= 0) close(socket_);
  if (wake_ >= 0) close(wake_);
  throw RuntimeFault(
      concat("the watchdog got no UDP socket: ", reason, "; run.watchdog_seconds=0 goes without"));
}

HeartbeatSocket::~HeartbeatSocket() {
  close(socket_);
  close(wake_);
}

std::vector<std::string> HeartbeatSocket::addresses() const {
  sockaddr_in own{};
  socklen_t length = sizeof own;
  getsockname(socket_, reinterpret_cast<sockaddr*>(&own), &length);
  const std::string port = std::to_string(ntohs(own.sin_port));
  std::vector<std::string> found;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) == 0) {
    for (const ifaddrs* at = list; at != nullptr; at = at->ifa_next) {
      if (at->ifa_addr == nullptr || at->ifa_addr->sa_family != AF_INET) continue;
      if ((at->ifa_flags & IFF_UP) == 0 || (at->ifa_flags & IFF_LOOPBACK) != 0) continue;
      char text[INET_ADDRSTRLEN];
      sockaddr_in address{};
      std::memcpy(&address, at->ifa_addr, sizeof address);
      inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
      found.push_back(std::string(text) + ":" + port);
    }
    freeifaddrs(list);
  }
  found.push_back("127.0.0.1:" + port);
  return found;
}

void HeartbeatSocket::send(const std::string& text, const sockaddr_in& to) const {
  sendto(socket_, text.data(), std::min(text.size(), kMaxDatagram), 0,
         reinterpret_cast<const sockaddr*>(&to), sizeof to);
}

std::string HeartbeatSocket::receive(int timeout_ms, sockaddr_in& from) {
  pollfd waits[] = {{socket_, POLLIN, 0}, {wake_, POLLIN, 0}};
  if (poll(waits, 2, timeout_ms) <= 0 || (waits[0].revents & POLLIN) == 0) return "";
  socklen_t length = sizeof from;
  const ssize_t bytes = recvfrom(socket_, buffer_.data(), buffer_.size(), 0,
                                 reinterpret_cast<sockaddr*>(&from), &length);
  return {buffer_.data(), bytes > 0 ? static_cast<std::size_t>(bytes) : 0};
}

void HeartbeatSocket::wake() const {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof one);
}

std::optional<sockaddr_in> parse_address(const std::string& text) {
  const std::size_t colon = text.find(':');
  sockaddr_in address{};
  address.sin_family = AF_INET;
  if (colon == std::string::npos ||
      inet_pton(AF_INET, text.substr(0, colon).c_str(), &address.sin_addr) != 1)
    return std::nullopt;
  const int port = std::atoi(text.c_str() + colon + 1);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  return address;
}

}  // namespace openmoe
