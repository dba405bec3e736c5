// A launcher reads what a rank writes through a pipe, and throws away what it has not read when it
// learns, by another way, that the rank or the job has ended.
#pragma once

#include <chrono>

namespace openmoe {

// What a launcher that still works needs at most to read a message.
constexpr std::chrono::milliseconds kMostTimeToBeRead(5000);

// Waits until the other end of a pipe has read what was written to `descriptor`; false where that
// takes longer than `patience`. True at once for what is no pipe.
bool wait_until_read(int descriptor, std::chrono::milliseconds patience = kMostTimeToBeRead);

// Of stderr; then the time in which the launcher hands it on. Before a rank ends without
// MPI_Finalize.
void leave_last_words();

}  // namespace openmoe
