#include "shapes.h"

#include <algorithm>
#include <set>

#include "error.h"
#include "layer_shapes.h"

namespace edgekit {

namespace {

// Layers that give each input's shape again, whatever it is.
const std::set<std::string> kElementwise = {
    "AbsVal",    "BNLL",    "Cast",      "CELU",     "Clip",    "Dropout",  "ELU",    "Erf",
    "Exp",       "GELU",    "HardSigmoid", "HardSwish", "Log",  "Mish",     "Noop",   "Power",
    "ReLU",      "SELU",    "Shrink",    "Sigmoid",  "Softplus", "Swish",   "TanH",   "Threshold",
    "UnaryOp",   "LRN",     "Normalize", "MVN",      "Dequantize", "Quantize", "Requantize",
    "LayerNorm", "RMSNorm", "CumulativeSum"};

using Rule = Shape (*)(const ParamLayer&, const Shape&);

const std::map<std::string, Rule> kRules = {
    {"Convolution", shape_of_convolution},
    {"ConvolutionDepthWise", shape_of_convolution},
    {"Deconvolution", shape_of_deconvolution},
    {"DeconvolutionDepthWise", shape_of_deconvolution},
    {"InnerProduct", shape_of_inner_product},
    {"Pooling", shape_of_pooling},
    {"Reshape", shape_of_reshape},
    {"Flatten", shape_of_flatten},
    {"Permute", shape_of_permute},
    {"Interp", shape_of_interp},
    {"Softmax", shape_of_softmax},
    {"Padding", shape_of_padding},
    {"PixelShuffle", shape_of_pixel_shuffle},
    {"ShuffleChannel", shape_of_shuffle_channel},
    {"BatchNorm", shape_of_per_channel},
    {"Scale", shape_of_per_channel},
    {"Bias", shape_of_per_channel},
    {"PReLU", shape_of_per_channel},
    {"InstanceNorm", shape_of_per_channel},
    {"GroupNorm", shape_of_per_channel},
};

void check_counts(const ParamLayer& layer, size_t inputs, size_t outputs) {
    if (layer.inputs.size() != inputs || layer.outputs.size() != outputs) {
        throw misfit(layer, "takes " + std::to_string(layer.inputs.size()) + " and makes " +
                                std::to_string(layer.outputs.size()) + " blobs, which it cannot");
    }
}

}  // namespace

std::vector<BlobShape> shapes_of(const ParamLayer& layer, const std::vector<BlobShape>& inputs) {
    const std::vector<BlobShape> unknown(layer.outputs.size(), std::nullopt);
    const bool open = std::any_of(inputs.begin(), inputs.end(), [](const BlobShape& s) { return !s; });
    if (layer.type == "Split") {
        if (layer.inputs.size() != 1) check_counts(layer, 1, layer.outputs.size());
        return std::vector<BlobShape>(layer.outputs.size(), inputs[0]);
    }
    if (layer.type == "Input") {
        check_counts(layer, 0, 1);
        return unknown;  // the sidecar says it
    }
    if (layer.type == "MemoryData") {
        check_counts(layer, 0, 1);
        return {shape_of_memory(layer)};
    }
    if (kElementwise.count(layer.type)) {
        check_counts(layer, layer.inputs.size(), layer.inputs.size());
        if (layer.type != "Noop") check_counts(layer, 1, 1);
        if (layer.type == "LayerNorm" || layer.type == "RMSNorm") {
            if (!open) check_norm_size(layer, *inputs[0]);
        }
        return inputs;
    }
    const auto rule = kRules.find(layer.type);
    if (rule != kRules.end()) {
        if (layer.inputs.size() != 1) {
            // weights, sizes or scales may come as further inputs: those forms are not followed
            return unknown;
        }
        check_counts(layer, 1, 1);
        if (open) return unknown;
        const Shape shape = rule->second(layer, *inputs[0]);
        return {shape.empty() ? BlobShape() : BlobShape(shape)};
    }
    if (layer.type == "Concat") {
        check_counts(layer, std::max<size_t>(1, inputs.size()), 1);
        return open ? unknown : std::vector<BlobShape>{shape_of_concat(layer, inputs)};
    }
    if (layer.type == "Slice") {
        check_counts(layer, 1, std::max<size_t>(1, layer.outputs.size()));
        if (open) return unknown;
        std::vector<BlobShape> out;
        for (const Shape& shape : shapes_of_slice(layer, *inputs[0])) out.push_back(shape);
        return out;
    }
    if (layer.type == "BinaryOp") {
        const bool scalar = layer.integer(1) != 0;
        check_counts(layer, scalar ? 1 : 2, 1);
        if (open) return unknown;
        if (scalar) return {inputs[0]};
        return {shape_of_binary(layer, *inputs[0], *inputs[1])};
    }
    if (layer.type == "Eltwise") {
        check_counts(layer, std::max<size_t>(2, inputs.size()), 1);
        if (open) return unknown;
        for (const BlobShape& shape : inputs) {
            if (shape != inputs[0]) throw misfit(layer, "joins blobs of different shapes");
        }
        return {inputs[0]};
    }
    if (layer.type == "MatMul") {
        check_counts(layer, 2, 1);
        return open ? unknown : std::vector<BlobShape>{shape_of_matmul(layer, *inputs[0], *inputs[1])};
    }
    return unknown;
}

std::map<std::string, BlobShape> check_shapes(const ParamGraph& graph, const Sidecar& sidecar,
                                              const std::string& what) {
    std::map<std::string, BlobShape> shapes;
    const std::vector<std::string> fed = graph.inputs();
    std::set<std::string> wanted;
    for (const SidecarTensor& tensor : sidecar.inputs) {
        wanted.insert(tensor.blob);
        if (tensor.inner().size() > 4) throw bad_input(what + ": its input has too many axes.");
    }
    if (std::set<std::string>(fed.begin(), fed.end()) != wanted || wanted.size() != sidecar.inputs.size()) {
        throw bad_input(what + ": its inputs are not those of its .param.", "Export the model again.");
    }
    std::set<std::string> taken;
    for (const ParamLayer& layer : graph.layers) {
        std::vector<BlobShape> inputs;
        for (const std::string& name : layer.inputs) {
            // ncnn gives a blob's memory back behind its one consumer; Split makes more of it
            if (!taken.insert(name).second) throw misfit(layer, "takes '" + name + "', which is used up");
            inputs.push_back(shapes[name]);
        }
        std::vector<BlobShape> outputs = shapes_of(layer, inputs);
        if (layer.type == "Input") {
            for (const SidecarTensor& tensor : sidecar.inputs) {
                if (tensor.blob == layer.outputs[0]) outputs = {tensor.inner()};
            }
        }
        for (size_t i = 0; i < layer.outputs.size(); i++) {
            if (outputs[i]) check_size(layer, *outputs[i]);
            shapes[layer.outputs[i]] = outputs[i];
        }
    }
    for (const SidecarTensor& tensor : sidecar.outputs) {
        const auto found = shapes.find(tensor.blob);
        if (found == shapes.end()) throw bad_input(what + ": its .param has no blob '" + tensor.blob + "'.");
        if (taken.count(tensor.blob)) {
            throw bad_input(what + ": the output '" + tensor.blob + "' is taken by a layer.");
        }
        if (found->second && count_of(*found->second) != count_of(tensor.shape)) {
            throw bad_input(what + ": the output '" + tensor.blob + "' becomes " + text_of(*found->second) +
                                ", not " + text_of(tensor.inner()) + ".",
                            "The files belong to different models: export again.");
        }
    }
    return shapes;
}

}  // namespace edgekit
