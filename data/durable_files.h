// Files that are either whole on the disk or not there: what checkpoints, shards and logs need of
// POSIX. Failures throw RuntimeFault with the call, the path and the system's reason.
#pragma once

#include <string>

namespace openmoe {

// Forces the content of a file, or the entries of a folder, to the disk.
void sync_path(const std::string& path);

void write_and_sync(const std::string& path, const std::string& content);

// The end of writing a file under a name that nobody reads: its content reaches the disk, then it
// takes the place of `to`. After a power failure a name without its content would be worse than
// none.
void publish_file(const std::string& temporary, const std::string& to);

// Writes a file so: the file at `path` has the old content or the new one whatever happens.
void replace_file(const std::string& path, const std::string& content);

// Puts folder `from` in the place of `to`, atomically; what was at `to`, if anything, ends at
// `from`. Both must be on one file system.
void swap_into_place(const std::string& from, const std::string& to);

// The end of writing a folder under a name that nobody reads: its entries reach the disk, then it
// takes the place of `to`, and what was there is removed.
void publish_folder(const std::string& temporary, const std::string& to);

}  // namespace openmoe
