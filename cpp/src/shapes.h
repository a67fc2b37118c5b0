// The shapes of a graph's blobs, worked out from the input's before ncnn runs.
//
// ncnn checks most parameters while loading, but not whether a layer fits what it is fed: a slice
// beyond the end of its axis or too few weights for the channels are read all the same. So every common
// layer is followed here, by ncnn's own rules, and what cannot be computed is refused. Where a layer is
// not known, the shapes behind it are open and go unchecked.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "param.h"
#include "sidecar.h"

namespace edgekit {

// Sizes outermost first, without a batch: [w], [h, w], [c, h, w] or [c, d, h, w]; nothing when unknown.
using BlobShape = std::optional<Shape>;

// Throws Error (bad input), naming the layer, when a layer does not fit, when the sidecar's inputs are
// not those of the graph, or when an output has another size than the sidecar says. Returns the shape of
// every blob.
std::map<std::string, BlobShape> check_shapes(const ParamGraph& graph, const Sidecar& sidecar,
                                              const std::string& what);

// The shapes of one layer's outputs. Throws Error (bad input).
std::vector<BlobShape> shapes_of(const ParamLayer& layer, const std::vector<BlobShape>& inputs);

}  // namespace edgekit
