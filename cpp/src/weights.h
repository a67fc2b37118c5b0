// Whether a .bin holds what the layers of its .param announce: length, storage marks, whole layers.
//
// ncnn reads the file without names or sizes, so a file that does not fit gives garbage or worse. The
// same arithmetic as edgekit/formats/ncnn_bin.py; source: ncnn 1.0.20261020, src/modelbin.cpp and
// load_model of each layer under src/layer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "param.h"

namespace edgekit {

// An array that the file holds next: tagged ones begin with four bytes that say how they are stored,
// plain ones are float32.
struct Slot {
    std::string name;
    int64_t size = 0;
    bool tagged = false;
};

// The arrays of a layer in the order of the file. Throws Error (bad input) for sizes that cannot be.
std::vector<Slot> slots_of(const ParamLayer& layer);

// Throws Error (bad input), naming the layer, when the bytes do not fit the graph, or when a plain
// value (a bias, a scale) is not finite.
void check_weights(std::string_view data, const ParamGraph& graph, const std::string& what);

}  // namespace edgekit
