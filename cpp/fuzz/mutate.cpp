#include "mutate.h"

#include <algorithm>
#include <cctype>
#include <vector>

namespace edgekit::fuzz {

namespace {

size_t below(Random& random, size_t limit) {
    return limit == 0 ? 0 : size_t(random() % limit);
}

const char* const kNumbers[] = {"0",     "1",          "-1",         "2",    "3",    "7",      "255",        "256",
                                "65535", "65536",      "1000000",    "-233", "-234", "-23300", "2147483647", "2147483648",
                                "-5",    "4294967295", "1073741824", "1e30", "1e99", "0.0",    "-0.5",       "99999999999999999999"};

const char* const kWords[] = {"ReLU", "Convolution", "Slice", "Reshape", "Split", "Concat", "Pooling", "BinaryOp",
                              "Permute", "InnerProduct", "MemoryData", "Crop", "Interp", "Softmax", "Gemm", "LSTM",
                              "MultiHeadAttention", "Embed", "Noop", "in0", "out0", "true", "null", "[]", "{}"};

std::string any_number(Random& random) {
    if (random() % 4 == 0) return std::to_string(int64_t(random() % 4096) - 64);
    return kNumbers[below(random, std::size(kNumbers))];
}

// Where the header ends: behind the first lines of text, behind the first mark and weights of a .bin.
size_t header_end(const std::string& text, bool binary) {
    if (binary) return std::min<size_t>(64, text.size());
    size_t end = 0;
    for (int line = 0; line < 3 && end < text.size(); line++) {
        const size_t next = text.find('\n', end);
        if (next == std::string::npos) break;
        end = next + 1;
    }
    return end;
}

void change_bytes(std::string& text, size_t from, Random& random) {
    const int times = 1 << below(random, 5);
    for (int i = 0; i < times && from < text.size(); i++) {
        const size_t at = from + below(random, text.size() - from);
        const size_t length = std::min(text.size() - at, size_t(1) << below(random, 9));
        switch (random() % 6) {
        case 0: text[at] = char(text[at] ^ (1 << (random() % 8))); break;
        case 1: text[at] = char(random()); break;
        case 2: text.erase(at, length); break;
        case 3: text.insert(at, text.substr(at, length)); break;
        case 4: std::fill(text.begin() + long(at), text.begin() + long(at + length), '\0'); break;
        default: text[at] = "09-.=,\n \"{}[]"[random() % 13];
        }
    }
}

// Spans of digits (with sign and point) behind `from`.
void change_numbers(std::string& text, size_t from, Random& random) {
    const int times = 1 + int(random() % 3);
    for (int i = 0; i < times && from < text.size(); i++) {
        size_t at = from + below(random, text.size() - from);
        const auto digit = [&](size_t p) { return p < text.size() && std::isdigit(static_cast<unsigned char>(text[p])); };
        while (at < text.size() && !digit(at)) at++;
        if (at >= text.size()) return;
        size_t start = at, end = at;
        while (start > from && digit(start - 1)) start--;
        if (start > from && text[start - 1] == '-') start--;
        while (digit(end) || (end < text.size() && text[end] == '.')) end++;
        text.replace(start, end - start, any_number(random));
    }
}

void change_words(std::string& text, size_t from, Random& random) {
    if (from >= text.size()) return;
    size_t at = from + below(random, text.size() - from);
    const auto letter = [&](size_t p) { return p < text.size() && (std::isalnum(static_cast<unsigned char>(text[p])) || text[p] == '_'); };
    while (at < text.size() && !letter(at)) at++;
    size_t start = at, end = at;
    while (start > from && letter(start - 1)) start--;
    while (letter(end)) end++;
    if (start == end) return;
    if (random() % 2) text.replace(start, end - start, kWords[below(random, std::size(kWords))]);
    else text.erase(start, end - start);
}

void change_lines(std::string& text, size_t from, Random& random) {
    std::vector<std::string> lines;
    size_t at = from;
    while (at < text.size()) {
        const size_t next = std::min(text.find('\n', at), text.size() - 1) + 1;
        lines.push_back(text.substr(at, next - at));
        at = next;
    }
    if (lines.size() < 2) return;
    const size_t one = below(random, lines.size()), two = below(random, lines.size());
    switch (random() % 4) {
    case 0: std::swap(lines[one], lines[two]); break;
    case 1: lines.erase(lines.begin() + long(one)); break;
    case 2: lines.insert(lines.begin() + long(one), lines[two]); break;
    default: lines[one] = lines[one].substr(0, below(random, lines[one].size())) + "\n";
    }
    text.erase(from);
    for (const std::string& line : lines) text += line;
}

// Parameters of one layer: a value changed, added or taken away.
void change_parameter(std::string& text, size_t from, Random& random) {
    if (from >= text.size()) return;
    size_t at = text.find('=', from + below(random, text.size() - from));
    if (at == std::string::npos) at = text.find('=', from);
    if (at == std::string::npos) return;
    size_t start = at, end = at + 1;
    while (start > from && text[start - 1] != ' ') start--;
    while (end < text.size() && text[end] != ' ' && text[end] != '\n') end++;
    switch (random() % 4) {
    case 0: text.replace(at + 1, end - at - 1, any_number(random)); break;
    case 1: text.erase(start, end - start); break;
    case 2: text.replace(start, at - start, std::to_string(random() % 33)); break;
    default: text.insert(end, " " + std::to_string(random() % 33) + "=" + any_number(random));
    }
}

// Weights: marks, scales and floats that are odd.
void change_weights(std::string& data, size_t from, Random& random) {
    static const uint32_t words[] = {0, 0x01306B47, 0x01348B83, 0x000D4B38, 0x0002C056, 0x7FC00000, 0x7F800000, 0xFF800000,
                                     0x7F7FFFFF, 0x00000001, 0x80000000, 0xFFFFFFFF, 0x4F000000};
    const int times = 1 + int(random() % 4);
    for (int i = 0; i < times && data.size() >= from + 4; i++) {
        const size_t at = (from + below(random, data.size() - from - 3)) / 4 * 4;
        const uint32_t word = words[below(random, std::size(words))];
        for (size_t k = 0; k < 4 && at + k < data.size() && at >= from; k++) data[at + k] = char(word >> (8 * k));
    }
}

}  // namespace

std::string mutate(Files& files, Random& random, bool past_header) {
    std::string done;
    const int count = random() % 8 == 0 ? 2 : 1;
    for (int i = 0; i < count; i++) {
        const size_t which = below(random, 10);  // graph and weights most of all
        std::string& text = which < 2 ? files.manifest : which < 4 ? files.sidecar : which < 8 ? files.param : files.bin;
        const bool binary = which >= 8;
        const size_t from = past_header ? header_end(text, binary) : 0;
        const char* name = which < 2 ? "manifest" : which < 4 ? "sidecar" : which < 8 ? "param" : "bin";
        const char* way = "bytes";
        switch (binary ? random() % 4 + 10 : random() % 8) {
        case 0: change_bytes(text, from, random); break;
        case 1: way = "cut", text.resize(from + below(random, text.size() - from + 1)); break;
        case 2: way = "words", change_words(text, from, random); break;
        case 3: way = "lines", change_lines(text, from, random); break;
        case 4: case 5: way = "numbers", change_numbers(text, from, random); break;
        case 6: case 7: way = "parameter", which >= 4 ? change_parameter(text, from, random) : change_numbers(text, from, random); break;
        case 10: way = "cut", text.resize(from + below(random, text.size() - from + 1)); break;
        case 11: way = "weights", change_weights(text, from, random); break;
        case 12: way = "grown", text += std::string(1 + below(random, 64), char(random())); break;
        default: change_bytes(text, from, random);
        }
        done += std::string(done.empty() ? "" : ", ") + name + " " + way;
    }
    return done;
}

}  // namespace edgekit::fuzz
