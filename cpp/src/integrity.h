// Whether the files of a bundle are those that its manifest lists.
#pragma once

#include <string>
#include <vector>

#include "manifest.h"

namespace edgekit {

// What is wrong with the listed file: missing, a link that leads out, another size or content; empty
// when nothing is.
std::string file_problem(const Manifest& manifest, const std::string& name);

// The bytes of the listed file. Throws Error: verification failed when it is not the one that was
// listed, bad input when it cannot be read or is larger than `most`.
std::string read_listed(const Manifest& manifest, const std::string& name, uint64_t most);

// What lies in the folder without standing in the manifest, sorted.
std::vector<std::string> unlisted(const Manifest& manifest);

// Whether SHA256SUMS is that of the manifest; empty when it is.
std::string sums_problem(const Manifest& manifest);

}  // namespace edgekit
