// The rule of each kind of layer: what it makes of its input's shape, as ncnn computes it. All throw
// Error (bad input) when the layer does not fit; an empty shape means that it cannot be told.
// Source: forward of each layer in ncnn 1.0.20261020, src/layer.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "error.h"
#include "param.h"
#include "tensor.h"

namespace edgekit {

// "layer 'conv1' (Convolution) PROBLEM."
Error misfit(const ParamLayer& layer, const std::string& problem);
// Refuses blobs that no model of this program's kind has.
void check_size(const ParamLayer& layer, const Shape& shape);
void check_rank(const ParamLayer& layer, const Shape& in, size_t rank);
void check_weight(const ParamLayer& layer, int64_t found, int64_t wanted);
void check_activation(const ParamLayer& layer, int type_key, int params_key);
// The whole number `key`, which must lie in `low` to `high`.
int64_t side(const ParamLayer& layer, int key, int64_t otherwise, int64_t low, int64_t high = 1 << 20);
void check_norm_size(const ParamLayer& layer, const Shape& in);

Shape shape_of_convolution(const ParamLayer& layer, const Shape& in);
Shape shape_of_deconvolution(const ParamLayer& layer, const Shape& in);
Shape shape_of_inner_product(const ParamLayer& layer, const Shape& in);
Shape shape_of_pooling(const ParamLayer& layer, const Shape& in);
Shape shape_of_reshape(const ParamLayer& layer, const Shape& in);
Shape shape_of_flatten(const ParamLayer& layer, const Shape& in);
Shape shape_of_permute(const ParamLayer& layer, const Shape& in);
Shape shape_of_interp(const ParamLayer& layer, const Shape& in);
Shape shape_of_softmax(const ParamLayer& layer, const Shape& in);
Shape shape_of_padding(const ParamLayer& layer, const Shape& in);
Shape shape_of_pixel_shuffle(const ParamLayer& layer, const Shape& in);
Shape shape_of_shuffle_channel(const ParamLayer& layer, const Shape& in);
Shape shape_of_per_channel(const ParamLayer& layer, const Shape& in);
Shape shape_of_memory(const ParamLayer& layer);
Shape shape_of_concat(const ParamLayer& layer, const std::vector<std::optional<Shape>>& in);
std::vector<Shape> shapes_of_slice(const ParamLayer& layer, const Shape& in);
Shape shape_of_binary(const ParamLayer& layer, const Shape& a, const Shape& b);
Shape shape_of_matmul(const ParamLayer& layer, const Shape& a, const Shape& b);

}  // namespace edgekit
