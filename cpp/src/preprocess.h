// From a decoded image to the model's input, by the contract: bit for bit what
// edgekit/preprocess.py computes.
#pragma once

#include <vector>

#include "contract.h"
#include "pixels.h"
#include "tensor.h"

namespace edgekit {

// Where the image lies in the network's input: input = source * scale + offset, in pixels.
struct Placement {
    double scale_x = 1.0;
    double scale_y = 1.0;
    double offset_x = 0.0;
    double offset_y = 0.0;
    int source_height = 0;
    int source_width = 0;
};

// What the runner cannot do bit for bit; an empty text when it can apply the contract.
std::string unsupported(const Contract& contract);

// Resize, padding and colours: RGB [h, w, 3] to [height, width, channels] of the contract. Throws
// Error (bad input) when `resize` is "none" and the sizes differ.
Pixels fit(const Pixels& image, const Contract& contract, Placement& placement);

// The values: one table of 256 entries per channel, computed in double and rounded once.
std::vector<float> lookup_table(const Contract& contract);

// The whole contract: RGB [h, w, 3] to a tensor of `contract.input_shape()`.
Tensor apply(const Pixels& image, const Contract& contract, Placement& placement);

}  // namespace edgekit
