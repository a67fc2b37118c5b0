// Mutations of a bundle's files: of bytes, of words, of numbers and of whole lines.
#pragma once

#include <cstdint>
#include <random>
#include <string>

#include "target.h"

namespace edgekit::fuzz {

using Random = std::mt19937_64;

// Changes one of the files (now and then two). With `past_header` nothing before the end of the file's
// header changes, so that the change gets past the first checks. Returns what was done, in a few words.
std::string mutate(Files& files, Random& random, bool past_header);

}  // namespace edgekit::fuzz
