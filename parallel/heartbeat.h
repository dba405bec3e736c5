// Heartbeat: datagrams between the watchdogs of a job, and their text. No MPI.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "parallel/rank_activity.h"

namespace openmoe {

struct Heartbeat {
  enum class Kind { state, verdict };  // a verdict: the job ends
  Kind kind = Kind::state;
  int rank = 0;         // the sender
  bool leaves = false;  // it does not take part any more
  double idle = 0.0;    // seconds since its state last changed
  RankState state;
};

// Fields are separated by tabs; `key` tells a job's own datagrams from others.
std::string to_text(const Heartbeat& heartbeat, const std::string& key);
// Nothing when the text is not a heartbeat with this key.
std::optional<Heartbeat> parse_heartbeat(const std::string& text, const std::string& key);

// One UDP socket on all IPv4 addresses of this host. Sending never blocks and never fails loudly:
// datagrams may be lost anyway.
class HeartbeatSocket {
 public:
  HeartbeatSocket();  // throws RuntimeFault
  ~HeartbeatSocket();
  HeartbeatSocket(const HeartbeatSocket&) = delete;
  HeartbeatSocket& operator=(const HeartbeatSocket&) = delete;

  // "10.0.0.7:4711", one for each address of this host, loopback last.
  std::vector<std::string> addresses() const;
  void send(const std::string& text, const sockaddr_in& to) const;
  // Waits for a datagram, at most so long or until wake(); "" when none came.
  std::string receive(int timeout_ms, sockaddr_in& from);
  // Ends every receive() from now on; of any thread.
  void wake() const;

 private:
  int socket_ = -1;
  int wake_ = -1;
  std::vector<char> buffer_;  // of receive()
};

std::optional<sockaddr_in> parse_address(const std::string& text);

}  // namespace openmoe
