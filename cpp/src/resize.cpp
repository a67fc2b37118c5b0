#include "resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace edgekit {

namespace {

constexpr float kOne = 2048.0f;  // weights have 11 bits

// For each target index the first of its two source indices, and both weights.
struct Taps {
    std::vector<int> index;
    std::vector<int> near_weight;
    std::vector<int> far_weight;
};

// OpenCV clamps the position at both ends across, where the weight becomes 2048 and 0; down it clamps
// only the rows that are read, and both weights stay: that differs in the last bit.
Taps taps(int target, int source, bool clamp) {
    Taps out;
    const double scale = 1.0 / (double(target) / double(source));
    for (int i = 0; i < target; i++) {
        float position = float((double(i) + 0.5) * scale - 0.5);
        int first = int(std::floor(position));
        float part = position - float(first);
        if (clamp && first < 0) {
            first = 0;
            part = 0.0f;
        }
        if (clamp && first >= source - 1) {
            first = source - 1;
            part = 0.0f;
        }
        out.index.push_back(first);
        out.near_weight.push_back(int(std::lrint((1.0f - part) * kOne)));
        out.far_weight.push_back(int(std::lrint(part * kOne)));
    }
    return out;
}

// One source row, interpolated across: values times 2048, shifted right by 4 as the next step wants.
void row_across(const uint8_t* row, const Taps& x, int source_width, int channels, std::vector<int>& out) {
    const int target = int(x.index.size());
    for (int i = 0; i < target; i++) {
        const uint8_t* near_pixel = row + size_t(x.index[size_t(i)]) * size_t(channels);
        const bool last = x.index[size_t(i)] + 1 >= source_width;
        const uint8_t* far_pixel = last ? near_pixel : near_pixel + channels;
        const int a = x.near_weight[size_t(i)], b = x.far_weight[size_t(i)];
        int* to = out.data() + size_t(i) * size_t(channels);
        for (int c = 0; c < channels; c++) to[c] = (near_pixel[c] * a + far_pixel[c] * b) >> 4;
    }
}

}  // namespace

Pixels resize_bilinear(const Pixels& image, int height, int width) {
    if (height == image.height && width == image.width) return image;
    Pixels out(height, width, image.channels);
    const Taps x = taps(width, image.width, true), y = taps(height, image.height, false);
    std::vector<int> upper(out.row_bytes()), lower(out.row_bytes());
    int upper_row = -1, lower_row = -1;  // which source rows are held
    for (int i = 0; i < height; i++) {
        const int first = std::clamp(y.index[size_t(i)], 0, image.height - 1);
        const int second = std::clamp(y.index[size_t(i)] + 1, 0, image.height - 1);
        if (first != upper_row) {
            if (first == lower_row) std::swap(upper, lower);
            else row_across(image.row(first), x, image.width, image.channels, upper);
            upper_row = first;
            lower_row = -1;
        }
        if (second != lower_row) {
            if (second == first) lower = upper;
            else row_across(image.row(second), x, image.width, image.channels, lower);
            lower_row = second;
        }
        const int a = y.near_weight[size_t(i)], b = y.far_weight[size_t(i)];
        uint8_t* to = out.row(i);
        for (size_t k = 0; k < out.row_bytes(); k++) {
            const int sum = ((a * upper[k]) >> 16) + ((b * lower[k]) >> 16);
            to[k] = uint8_t(std::clamp((sum + 2) >> 2, 0, 255));
        }
    }
    return out;
}

Pixels resize_nearest(const Pixels& image, int height, int width) {
    if (height == image.height && width == image.width) return image;
    Pixels out(height, width, image.channels);
    const double scale_x = 1.0 / (double(width) / double(image.width));
    const double scale_y = 1.0 / (double(height) / double(image.height));
    const size_t channels = size_t(image.channels);
    std::vector<size_t> from;
    for (int j = 0; j < width; j++) {
        from.push_back(size_t(std::min(int(std::floor(j * scale_x)), image.width - 1)) * channels);
    }
    for (int i = 0; i < height; i++) {
        const uint8_t* row = image.row(std::min(int(std::floor(i * scale_y)), image.height - 1));
        uint8_t* to = out.row(i);
        for (size_t j = 0; j < from.size(); j++) std::memcpy(to + j * channels, row + from[j], channels);
    }
    return out;
}

}  // namespace edgekit
