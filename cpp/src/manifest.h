// The manifest of a bundle, schema 1 (docs/bundle.md): what is read from it, and the checks before any
// of it is used. Nothing in it is believed: types, sizes and paths are checked while reading, and a
// path that leaves the folder is never opened.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "contract.h"

namespace edgekit {

struct FileEntry {
    int64_t size = 0;
    std::string sha256;
};

struct ModelEntry {
    std::string runtime;
    std::string precision;
    std::vector<std::string> files;  // bundle paths; the first is the one to open
    // (name, shape); a dimension that the manifest leaves open is 0
    std::vector<std::pair<std::string, Shape>> inputs;
    std::vector<std::pair<std::string, Shape>> outputs;
};

struct GoldenEntry {
    std::string image;
    std::string input;
    std::vector<std::pair<std::string, std::string>> outputs;  // name and file, in the model's order
};

struct GoldenLimits {
    double max_rel_error = 0.0;
    double min_cosine = 1.0;
};

// Part of an output that has one meaning: on each axis the indices of these spans (start, stop, step);
// no span takes the whole axis.
struct Block {
    std::string name;
    std::string output;
    std::vector<std::vector<std::array<int64_t, 3>>> axes;
};

struct Golden {
    std::string runtime;
    std::string runtime_version;
    std::string cpu;
    GoldenLimits same;
    GoldenLimits other;
    std::vector<GoldenEntry> samples;
    std::vector<Block> blocks;
};

// How the target is measured.
struct MeasureSettings {
    int threads = 1;
    int warmup = 10;
    int iterations = 100;
    double cooldown_s = 0.0;
};

struct Manifest {
    std::string folder;
    std::string name;
    std::string target;
    std::string task;  // empty where the manifest names none
    std::string head;  // the same
    std::vector<std::string> names;
    std::string checkpoint_sha256;
    Contract contract;
    std::vector<ModelEntry> models;
    Golden golden;
    MeasureSettings measure;
    std::map<std::string, FileEntry> files;
    std::string sha256;  // of manifest.json itself

    std::string path(const std::string& file) const { return folder + "/" + file; }
};

// Why `name` cannot be a path inside a bundle; empty when it can.
std::string path_problem(const std::string& name);

// Reads and checks the manifest of the bundle at `folder`. Throws Error (bad input).
Manifest read_manifest(const std::string& folder);

// The same from the manifest's text.
Manifest parse_manifest(const std::string& text, const std::string& folder);

}  // namespace edgekit
