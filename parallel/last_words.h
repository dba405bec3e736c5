// A launcher reads what a rank writes through a pipe, and throws away what it has not read when it
// learns, by another way, that the rank or the job has ended.
#pragma once

#include <chrono>

namespace openmoe {

// Waits until the other end of a pipe has read what was written to `descriptor`; false where that
// takes longer than `patience`. True at once for what is no pipe.
bool wait_until_read(int descriptor, std::chrono::milliseconds patience);

// Of stderr; then the time in which the launcher hands it on.
void leave_last_words();

}  // namespace openmoe
