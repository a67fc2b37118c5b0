// Reading and drawing images, with ncnn's small image reader (JPEG, PNG, BMP, PNM).
//
// JPEG decoders differ by a few grey levels, so a photo read here is not bit for bit what cv2 reads;
// lossless formats are.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "heads.h"
#include "pixels.h"

namespace edgekit {

// What is wrong with the file's container (cut off, a format that is not read), or an empty text.
// Decoders fill the missing part of a truncated JPEG with grey and say nothing.
std::string container_problem(std::string_view data);

// The EXIF orientation (1 to 8) of a JPEG; 1 where it has none.
int exif_orientation(std::string_view data);

// Turns and mirrors the image as its EXIF orientation asks.
Pixels oriented(const Pixels& image, int orientation);

// Decodes to RGB [h, w, 3]. `name` names the image in messages. Throws Error (bad input).
Pixels decode_image(const std::string& data, const std::string& name);

// Reads and decodes a file.
Pixels read_image(const std::string& path);

// What a box says: its class's name and score.
struct Label {
    Candidate found;
    std::string text;
};

// Draws boxes with labels; colours by class.
void draw_boxes(Pixels& image, const std::vector<Label>& labels);

// Draws lines of text in the upper left corner.
void draw_lines(Pixels& image, const std::vector<std::string>& lines);

// Writes a JPEG or PNG, by the suffix. Throws Error.
void write_image(const Pixels& image, const std::string& path);

}  // namespace edgekit
