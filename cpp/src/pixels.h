// An 8-bit image in memory: rows of pixels, channels side by side, no padding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace edgekit {

struct Pixels {
    int height = 0;
    int width = 0;
    int channels = 3;
    std::vector<uint8_t> data;

    Pixels() = default;
    Pixels(int h, int w, int c, uint8_t value = 0)
        : height(h), width(w), channels(c), data(size_t(h) * size_t(w) * size_t(c), value) {}

    size_t row_bytes() const { return size_t(width) * size_t(channels); }
    const uint8_t* row(int y) const { return data.data() + size_t(y) * row_bytes(); }
    uint8_t* row(int y) { return data.data() + size_t(y) * row_bytes(); }
};

}  // namespace edgekit
