// Reading and writing whole files.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace edgekit {

// The file's bytes. Throws Error (bad input) when it is missing, unreadable, no plain file, or has
// more than `most` bytes.
std::string read_file(const std::string& path, uint64_t most);

// SHA-256 of a file of any size, read in pieces. Throws as `read_file`.
std::string sha256_file(const std::string& path);

// Writes the file through a temporary one beside it, so that nobody sees half of it. Throws Error.
void write_file(const std::string& path, std::string_view data);

bool is_folder(const std::string& path);

// Every image under the folder, sorted by path; names that begin with a dot are left out. An image
// file gives itself. Throws Error (bad input) when there is none.
std::vector<std::string> list_images(const std::string& path);

// Whether the name ends in a suffix of an image format that edgekit knows.
bool has_image_suffix(const std::string& path);

}  // namespace edgekit
