// What is fuzzed: everything that is read from a bundle, up to the first outputs.
#pragma once

#include <string>
#include <vector>

namespace edgekit::fuzz {

// The four files of a bundle that decide what ncnn gets to see.
struct Files {
    std::string manifest;
    std::string sidecar;
    std::string param;
    std::string bin;
};

enum class Outcome { refused, ran };

// Reads the files of a valid bundle. Throws Error.
Files read_files(const std::string& folder);

// Parses and checks all four; a model that is taken is loaded and run once. Hashes are not looked at:
// whoever can write the folder can write them. `message` gets the reason of a refusal.
Outcome run_one(const Files& files, std::string& message);

}  // namespace edgekit::fuzz
