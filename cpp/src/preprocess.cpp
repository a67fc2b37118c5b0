#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"
#include "resize.h"

namespace edgekit {

namespace {

constexpr double kMaxPixels = 1 << 28;

int round_half_up(double value) {
    return std::max(1, int(std::floor(value + 0.5)));
}

Pixels resized(const Pixels& image, const Contract& contract, int height, int width) {
    return contract.interpolation == "nearest" ? resize_nearest(image, height, width)
                                               : resize_bilinear(image, height, width);
}

Pixels letterbox(const Pixels& image, const Contract& contract, Placement& placement) {
    double ratio = std::min(double(contract.height) / image.height, double(contract.width) / image.width);
    if (!contract.upscale) ratio = std::min(ratio, 1.0);
    const int height = std::min(contract.height, round_half_up(image.height * ratio));
    const int width = std::min(contract.width, round_half_up(image.width * ratio));
    const Pixels small = resized(image, contract, height, width);
    const bool centred = contract.pad_place == "center";
    const int top = centred ? (contract.height - height) / 2 : 0;
    const int left = centred ? (contract.width - width) / 2 : 0;
    Pixels out(contract.height, contract.width, 3, uint8_t(contract.pad_value));
    for (int y = 0; y < height; y++) {
        std::memcpy(out.row(top + y) + size_t(left) * 3, small.row(y), small.row_bytes());
    }
    placement.scale_x = placement.scale_y = ratio;
    placement.offset_x = left;
    placement.offset_y = top;
    return out;
}

Pixels center_crop(const Pixels& image, const Contract& contract, Placement& placement) {
    const double want_y = contract.height / contract.crop_fraction;
    const double want_x = contract.width / contract.crop_fraction;
    const double ratio = std::max(want_y / image.height, want_x / image.width);
    if (image.height * ratio * (image.width * ratio) > kMaxPixels) {
        throw bad_input("An image of " + std::to_string(image.height) + "x" +
                        std::to_string(image.width) + " pixels becomes too large for its centre crop.");
    }
    const int height = std::max(contract.height, round_half_up(image.height * ratio));
    const int width = std::max(contract.width, round_half_up(image.width * ratio));
    const Pixels large = resized(image, contract, height, width);
    const int top = (height - contract.height) / 2, left = (width - contract.width) / 2;
    Pixels out(contract.height, contract.width, 3);
    for (int y = 0; y < contract.height; y++) {
        std::memcpy(out.row(y), large.row(top + y) + size_t(left) * 3, out.row_bytes());
    }
    placement.scale_x = double(width) / image.width;
    placement.scale_y = double(height) / image.height;
    placement.offset_x = -left;
    placement.offset_y = -top;
    return out;
}

// BT.601 luma with weights of 15 bits, as OpenCV's RGB2GRAY.
Pixels gray_of(const Pixels& image) {
    Pixels out(image.height, image.width, 1);
    for (size_t i = 0; i < out.data.size(); i++) {
        const uint8_t* p = image.data.data() + 3 * i;
        out.data[i] = uint8_t((p[0] * 9798 + p[1] * 19235 + p[2] * 3735 + (1 << 14)) >> 15);
    }
    return out;
}

}  // namespace

std::string unsupported(const Contract& contract) {
    if (contract.interpolation == "area" || contract.interpolation == "bicubic") {
        return "resizes by '" + contract.interpolation + "' (the runner does bilinear and nearest)";
    }
    if (contract.dtype != "float32") return "gives " + contract.dtype + " (ncnn takes float32)";
    return "";
}

Pixels fit(const Pixels& image, const Contract& contract, Placement& placement) {
    placement = Placement();
    placement.source_height = image.height;
    placement.source_width = image.width;
    Pixels fitted;
    if (contract.resize == "none") {
        if (image.height != contract.height || image.width != contract.width) {
            throw bad_input("An image of " + std::to_string(image.height) + "x" +
                                std::to_string(image.width) + " pixels where the model takes exactly " +
                                std::to_string(contract.height) + "x" + std::to_string(contract.width) +
                                " (resize is 'none').",
                            "Resize the images, or export with --resize letterbox.");
        }
        fitted = image;
    } else if (contract.resize == "stretch") {
        fitted = resized(image, contract, contract.height, contract.width);
        placement.scale_x = double(contract.width) / image.width;
        placement.scale_y = double(contract.height) / image.height;
    } else if (contract.resize == "letterbox") {
        fitted = letterbox(image, contract, placement);
    } else {
        fitted = center_crop(image, contract, placement);
    }
    if (contract.color == "gray") return gray_of(fitted);
    if (contract.color == "bgr") {
        for (size_t i = 0; i < fitted.data.size(); i += 3) std::swap(fitted.data[i], fitted.data[i + 2]);
    }
    return fitted;
}

std::vector<float> lookup_table(const Contract& contract) {
    std::vector<float> table;
    for (size_t c = 0; c < size_t(contract.channels()); c++) {
        for (int v = 0; v < 256; v++) {
            table.push_back(float((double(v) * contract.scale - contract.mean[c]) / contract.std[c]));
        }
    }
    return table;
}

Tensor apply(const Pixels& image, const Contract& contract, Placement& placement) {
    const Pixels fitted = fit(image, contract, placement);
    const std::vector<float> table = lookup_table(contract);
    const size_t channels = size_t(contract.channels());
    const size_t plane = size_t(contract.height) * size_t(contract.width);
    Tensor tensor;
    tensor.shape = contract.input_shape();
    tensor.values.resize(plane * channels);
    const bool planar = contract.layout == "nchw";
    for (size_t c = 0; c < channels; c++) {
        const float* values = table.data() + 256 * c;
        float* to = tensor.values.data() + (planar ? plane * c : c);
        const size_t step = planar ? 1 : channels;
        const uint8_t* from = fitted.data.data() + c;
        for (size_t i = 0; i < plane; i++) to[i * step] = values[from[i * channels]];
    }
    return tensor;
}

}  // namespace edgekit
