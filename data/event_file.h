// EventFile: scalars over steps in the form that TensorBoard reads: TFRecord frames of the protocol
// buffer message tensorflow.Event (tensorboard/compat/proto/event.proto), of which this writes
// wall_time, step, file_version, session_log with status and summary values with simple_value.
//
// A frame is the length (u64), a masked CRC of the length (u32), the bytes, a masked CRC of the
// bytes (u32), all little endian; the CRC is CRC-32C, masked by a rotation and an addition.
#pragma once

#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace openmoe {

std::uint32_t crc32c(std::string_view bytes);  // Castagnoli, as in RFC 3720

class EventFile {
 public:
  // Creates FOLDER/events.out.tfevents.SECONDS.HOST.STEP, with the folder, and starts at the step.
  // TensorBoard reads all such files of a folder in the order of their names, which is that of
  // their creation. Throws UserError.
  EventFile(const std::string& folder, std::int64_t first_step);

  // A session begins, anew or gone back: readers drop what they have read of `first_step` and
  // later. Throws RuntimeFault when the disk is full.
  void start(std::int64_t first_step);

  // Flushed: a killed run keeps its values. Throws RuntimeFault when the disk is full.
  void write(std::int64_t step, const std::vector<std::pair<std::string, double>>& scalars);

 private:
  void write_record(const std::string& event);

  std::string path_;
  std::ofstream file_;
};

}  // namespace openmoe
