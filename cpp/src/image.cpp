#include "image.h"

#include <mat.h>
#include <simpleocv.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "error.h"
#include "files.h"

namespace edgekit {

namespace {

constexpr uint64_t kMaxImageBytes = uint64_t(256) << 20;
constexpr int64_t kMaxPixels = int64_t(1) << 27;

unsigned byte_at(std::string_view data, size_t at) {
    return at < data.size() ? static_cast<unsigned char>(data[at]) : 0u;
}

unsigned big16(std::string_view data, size_t at) {
    return byte_at(data, at) << 8 | byte_at(data, at + 1);
}

uint64_t big32(std::string_view data, size_t at) {
    return uint64_t(big16(data, at)) << 16 | big16(data, at + 2);
}

bool starts(std::string_view data, std::string_view with) {
    return data.substr(0, with.size()) == with;
}

bool is_jpeg(std::string_view data) { return starts(data, "\xff\xd8"); }

constexpr std::string_view kPng("\x89PNG\r\n\x1a\n", 8);

bool too_large(uint64_t height, uint64_t width) {
    return height == 0 || width == 0 || height > 65535 || width > 65535 ||
           int64_t(height * width) > kMaxPixels;
}

// Walks the segments of a JPEG (ITU-T T.81, annex B) to its end-of-image marker.
std::string jpeg_problem(std::string_view data) {
    size_t at = 2;
    while (true) {
        if (at + 4 > data.size()) return "ends inside its headers";
        if (byte_at(data, at) != 0xFF) return "has a broken segment";
        const unsigned code = byte_at(data, at + 1);
        if (code == 0xFF) {
            at++;
            continue;
        }
        if (code == 0xD9) return "";
        if (code == 0x01 || (code >= 0xD0 && code <= 0xD8)) {
            at += 2;
            continue;
        }
        const bool frame = code >= 0xC0 && code <= 0xCF && code != 0xC4 && code != 0xC8 && code != 0xCC;
        if (frame && too_large(big16(data, at + 5), big16(data, at + 7))) return "has an unusable size";
        at += 2 + big16(data, at + 2);
        if (code != 0xDA) continue;
        // entropy-coded data ends at a marker: not a stuffed zero, a restart, or a fill byte
        while (true) {
            const size_t found = data.find('\xff', std::min(at, data.size()));
            if (found == std::string_view::npos || found + 1 >= data.size()) return "is truncated";
            const unsigned next = byte_at(data, found + 1);
            at = found + 1;
            if (next == 0xD9) return "";
            if (next == 0x00 || next == 0xFF || (next >= 0xD0 && next <= 0xD7)) continue;
            at = found;
            break;
        }
    }
}

// Walks the chunks of a PNG (W3C PNG, 5.3) to IEND.
std::string png_problem(std::string_view data) {
    if (too_large(big32(data, 20), big32(data, 16))) return "has an unusable size";
    size_t at = 8;
    while (at + 12 <= data.size()) {
        if (data.substr(at + 4, 4) == "IEND") return "";
        const uint64_t length = big32(data, at);
        if (length > data.size()) break;
        at += 12 + size_t(length);
    }
    return "is truncated";
}

}  // namespace

std::string container_problem(std::string_view data) {
    if (data.empty()) return "is empty";
    if (is_jpeg(data)) return jpeg_problem(data);
    if (starts(data, kPng)) return png_problem(data);
    if (starts(data, "BM") && data.size() >= 26) {
        const uint64_t length = byte_at(data, 2) | byte_at(data, 3) << 8 | byte_at(data, 4) << 16 |
                                uint64_t(byte_at(data, 5)) << 24;
        return data.size() < length ? "is truncated" : "";
    }
    if (data.size() > 8 && data[0] == 'P' && (data[1] == '5' || data[1] == '6')) return "";
    return "is in a format that this program does not read (JPEG, PNG, BMP and PNM it does)";
}

int exif_orientation(std::string_view data) {
    if (!is_jpeg(data)) return 1;
    for (size_t at = 2; at + 4 < data.size() && byte_at(data, at) == 0xFF;) {
        const unsigned code = byte_at(data, at + 1);
        if (code == 0xDA || code == 0xD9) return 1;
        const size_t length = big16(data, at + 2);
        const std::string_view segment = data.substr(at + 4, length < 2 ? 0 : length - 2);
        at += 2 + std::max<size_t>(2, length);
        if (code != 0xE1 || segment.substr(0, 6) != std::string_view("Exif\0\0", 6)) continue;
        const std::string_view tiff = segment.substr(6);
        const bool little = starts(tiff, "II");
        const auto u16 = [&](size_t i) {
            return little ? byte_at(tiff, i) | byte_at(tiff, i + 1) << 8 : big16(tiff, i);
        };
        const auto u32 = [&](size_t i) {
            return little ? uint64_t(u16(i)) | uint64_t(u16(i + 2)) << 16 : big32(tiff, i);
        };
        const size_t first = size_t(u32(4));
        const unsigned count = first < tiff.size() ? u16(first) : 0;
        for (unsigned i = 0; i < count && first + 14 + 12 * i <= tiff.size(); i++) {
            const size_t entry = first + 2 + 12 * size_t(i);
            if (u16(entry) != 0x0112) continue;
            const unsigned value = u16(entry + 8);
            return value >= 1 && value <= 8 ? int(value) : 1;
        }
        return 1;
    }
    return 1;
}

Pixels oriented(const Pixels& image, int orientation) {
    if (orientation <= 1 || orientation > 8) return image;
    const bool turned = orientation >= 5;
    const int height = turned ? image.width : image.height, width = turned ? image.height : image.width;
    // where pixel (0, 0) of the result comes from, and in which direction its rows run (TIFF 6.0, 274)
    const bool mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    Pixels out(height, width, image.channels);
    const size_t channels = size_t(image.channels);
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            int from_x = turned ? y : x, from_y = turned ? x : y;
            if (mirror_x) from_x = image.width - 1 - from_x;
            if (mirror_y) from_y = image.height - 1 - from_y;
            std::memcpy(out.row(y) + size_t(x) * channels, image.row(from_y) + size_t(from_x) * channels, channels);
        }
    }
    return out;
}

Pixels decode_image(const std::string& data, const std::string& name) {
    const std::string problem = container_problem(data);
    if (!problem.empty()) throw bad_input("The image " + name + " " + problem + ".", "Replace or delete the file.");
    const cv::Mat decoded = cv::imdecode(std::vector<unsigned char>(data.begin(), data.end()), cv::IMREAD_COLOR);
    if (decoded.empty() || decoded.c != 3) {
        throw bad_input("The image " + name + " cannot be decoded.", "Replace or delete the file.");
    }
    Pixels image(decoded.rows, decoded.cols, 3);
    for (size_t i = 0; i < image.data.size(); i += 3) {
        image.data[i] = decoded.data[i + 2];
        image.data[i + 1] = decoded.data[i + 1];
        image.data[i + 2] = decoded.data[i];
    }
    return oriented(image, exif_orientation(data));
}

Pixels read_image(const std::string& path) {
    return decode_image(read_file(path, kMaxImageBytes), path);
}

namespace {

// Distinct hues, far apart for neighbouring numbers.
unsigned colour_of(int64_t class_id) {
    static constexpr unsigned char table[][3] = {{230, 25, 75},  {60, 180, 75},  {0, 130, 200}, {245, 130, 48},
                                                 {145, 30, 180}, {0, 160, 160},  {240, 50, 230}, {128, 128, 0},
                                                 {170, 110, 40}, {128, 0, 0},    {0, 0, 128},   {90, 90, 90}};
    const auto& rgb = table[size_t(class_id) % std::size(table)];
    // the first channel of the pixel is the lowest byte
    return unsigned(rgb[0]) | unsigned(rgb[1]) << 8 | unsigned(rgb[2]) << 16 | 0xFF000000u;
}

constexpr unsigned kWhite = 0xFFFFFFFFu;

int font_of(const Pixels& image) {
    return std::clamp(std::min(image.height, image.width) / 60, 6, 24);
}

void draw_label(Pixels& image, const std::string& text, int x, int y, int font, unsigned colour) {
    int width = 0, height = 0;
    ncnn::get_text_drawing_size(text.c_str(), font, &width, &height);
    x = std::max(0, std::min(x, image.width - width));
    y = std::max(0, std::min(y, image.height - height));
    ncnn::draw_rectangle_c3(image.data.data(), image.width, image.height, x, y, std::min(width, image.width - x),
                            std::min(height, image.height - y), colour, -1);
    ncnn::draw_text_c3(image.data.data(), image.width, image.height, text.c_str(), x, y, font, kWhite);
}

// The drawing font has the printable ASCII signs only.
std::string drawable(const std::string& text) {
    std::string out;
    for (const char c : text) out += c >= 32 && c < 127 ? c : '?';
    return out.substr(0, 80);
}

}  // namespace

void draw_boxes(Pixels& image, const std::vector<Label>& labels) {
    const int font = font_of(image), line = std::max(1, font / 5);
    // the best is drawn last and so lies on top
    for (auto label = labels.rbegin(); label != labels.rend(); ++label) {
        const unsigned colour = colour_of(label->found.class_id);
        const int x1 = int(std::lround(label->found.box[0])), y1 = int(std::lround(label->found.box[1]));
        const int x2 = int(std::lround(label->found.box[2])), y2 = int(std::lround(label->found.box[3]));
        ncnn::draw_rectangle_c3(image.data.data(), image.width, image.height, x1, y1, std::max(1, x2 - x1),
                                std::max(1, y2 - y1), colour, line);
        draw_label(image, drawable(label->text), x1, y1 - 2 * font, font, colour);
    }
}

void draw_lines(Pixels& image, const std::vector<std::string>& lines) {
    const int font = font_of(image);
    for (size_t i = 0; i < lines.size(); i++) {
        draw_label(image, drawable(lines[i]), 0, int(i) * 2 * font, font, colour_of(int64_t(i)));
    }
}

void write_image(const Pixels& image, const std::string& path) {
    cv::Mat bgr(image.height, image.width, CV_8UC3);
    for (size_t i = 0; i < image.data.size(); i += 3) {
        bgr.data[i] = image.data[i + 2];
        bgr.data[i + 1] = image.data[i + 1];
        bgr.data[i + 2] = image.data[i];
    }
    const size_t dot = path.rfind('.');
    const std::string temporary = path.substr(0, dot) + ".part" + std::to_string(::getpid()) + path.substr(dot);
    if (!cv::imwrite(temporary, bgr, {}) || std::rename(temporary.c_str(), path.c_str()) != 0) {
        std::remove(temporary.c_str());
        throw bad_input(path + " cannot be written.", "Choose another folder, or make room.");
    }
}

}  // namespace edgekit
