#include "npy.h"

#include <cmath>
#include <cstring>

#include "error.h"

namespace edgekit {

namespace {

constexpr std::string_view kMagic("\x93NUMPY\x01\x00", 8);
constexpr int64_t kMaxElements = int64_t(1) << 31;

// Takes `word` off the front of `text`.
bool take(std::string_view& text, std::string_view word) {
    if (text.substr(0, word.size()) != word) return false;
    text.remove_prefix(word.size());
    return true;
}

float from_half(uint16_t bits) {
    const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    float value;
    if (exponent == 31) value = mantissa ? NAN : INFINITY;
    else if (exponent == 0) value = std::ldexp(float(mantissa), -24);
    else value = std::ldexp(float(mantissa + 1024), exponent - 25);
    return bits & 0x8000 ? -value : value;
}

template <class T>
void convert(const char* data, std::vector<float>& out) {
    for (size_t i = 0; i < out.size(); i++) {
        T value;
        std::memcpy(&value, data + i * sizeof(T), sizeof(T));
        out[i] = float(value);
    }
}

// The header "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }" and spaces.
bool parse_header(std::string_view header, std::string& type, Shape& shape) {
    if (!take(header, "{'descr': '")) return false;
    const size_t end = header.find('\'');
    if (end == std::string_view::npos || end > 8) return false;
    type = std::string(header.substr(0, end));
    header.remove_prefix(end);
    if (!take(header, "', 'fortran_order': False, 'shape': (")) return false;
    int64_t count = 1;
    while (!take(header, ")")) {
        int64_t size = 0;
        size_t digits = 0;
        while (digits < header.size() && header[digits] >= '0' && header[digits] <= '9') {
            if (digits > 10) return false;
            size = size * 10 + (header[digits] - '0');
            digits++;
        }
        header.remove_prefix(digits);
        if (digits == 0 || shape.size() == 8) return false;
        if (size > kMaxElements || count * size > kMaxElements) return false;
        count *= size;
        shape.push_back(size);
        const bool comma = take(header, ",");
        take(header, " ");
        if (!comma && header.substr(0, 1) != ")") return false;
    }
    if (!take(header, ", }")) return false;
    if (header.empty() || header.back() != '\n') return false;
    header.remove_suffix(1);
    return header.find_first_not_of(' ') == std::string_view::npos;
}

}  // namespace

bool is_npy(std::string_view data) {
    return data.substr(0, 6) == kMagic.substr(0, 6);
}

Tensor read_npy(std::string_view data, const std::string& what) {
    const Error broken =
        bad_input(what + " is not a .npy file of version 1.0, little-endian and in C order.");
    if (data.size() < 10 || data.substr(0, 8) != kMagic) throw broken;
    const size_t length = size_t(uint8_t(data[8])) | size_t(uint8_t(data[9])) << 8;
    if (data.size() < 10 + length) throw broken;
    std::string type;
    Tensor tensor;
    if (!parse_header(data.substr(10, length), type, tensor.shape)) throw broken;
    const std::string_view body = data.substr(10 + length);
    const size_t count = size_t(count_of(tensor.shape));
    size_t item;
    if (type == "<f4" || type == "<i4") item = 4;
    else if (type == "<f2") item = 2;
    else if (type == "<f8") item = 8;
    else if (type == "|u1" || type == "|i1") item = 1;
    else throw bad_input(what + " holds '" + type + "', not float32.");
    if (body.size() != count * item) {
        throw bad_input(what + " does not hold the " + text_of(tensor.shape) +
                        " values that its header names.");
    }
    tensor.values.resize(count);
    if (type == "<f4") convert<float>(body.data(), tensor.values);
    else if (type == "<i4") convert<int32_t>(body.data(), tensor.values);
    else if (type == "<f8") convert<double>(body.data(), tensor.values);
    else if (type == "|u1") convert<uint8_t>(body.data(), tensor.values);
    else if (type == "|i1") convert<int8_t>(body.data(), tensor.values);
    else {
        for (size_t i = 0; i < count; i++) {
            uint16_t bits;
            std::memcpy(&bits, body.data() + 2 * i, 2);
            tensor.values[i] = from_half(bits);
        }
    }
    return tensor;
}

std::string npy_bytes(const Tensor& tensor) {
    std::string shape;
    for (const int64_t size : tensor.shape) shape += std::to_string(size) + ", ";
    // one size keeps its comma, as in Python
    if (tensor.shape.size() > 1) shape.resize(shape.size() - 2);
    else if (tensor.shape.size() == 1) shape.resize(shape.size() - 1);
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + shape + "), }";
    header.append(63 - (10 + header.size()) % 64, ' ');
    header += '\n';
    std::string out(kMagic);
    out += char(header.size() & 255);
    out += char(header.size() >> 8);
    out += header;
    out.append(reinterpret_cast<const char*>(tensor.values.data()), tensor.values.size() * 4);
    return out;
}

}  // namespace edgekit
