#include "param.h"

#include <charconv>
#include <cmath>
#include <unordered_set>

#include "error.h"

namespace edgekit {

namespace {

constexpr int64_t kMaxLayers = 1 << 16;
constexpr size_t kMaxName = 255;
constexpr int kMaxId = 32;
constexpr int kOldArray = -23300;
constexpr size_t kMaxArray = 1 << 16;

// What is wrong with a line; the caller adds file and line number.
struct Problem {
    std::string text;
};

bool parse_integer(std::string_view text, int64_t& value) {
    if (!text.empty() && text[0] == '+') text.remove_prefix(1);
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    return result.ec == std::errc() && result.ptr == text.data() + text.size() &&
           value >= INT32_MIN && value <= INT32_MAX;
}

// [+-]digits[.digits][e[+-]digits], finite as float
bool parse_float(std::string_view text, double& value) {
    size_t at = 0, digits = 0;
    auto skip_digits = [&] {
        while (at < text.size() && text[at] >= '0' && text[at] <= '9') at++, digits++;
    };
    if (at < text.size() && (text[at] == '+' || text[at] == '-')) at++;
    skip_digits();
    if (at < text.size() && text[at] == '.') at++;
    skip_digits();
    if (digits == 0) return false;
    if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
        at++;
        if (at < text.size() && (text[at] == '+' || text[at] == '-')) at++;
        digits = 0;
        skip_digits();
        if (digits == 0 || digits > 4) return false;
    }
    if (at != text.size() || text.size() > 64) return false;
    if (text[0] == '+') text.remove_prefix(1);
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec == std::errc::result_out_of_range) value = 0.0;
    return result.ptr == text.data() + text.size() && std::isfinite(float(value));
}

bool is_string(std::string_view text) {
    if (text.size() > kMaxName || text.empty()) return false;
    const bool in_quotes = text[0] == '"';
    if (in_quotes && (text.size() < 2 || text.back() != '"')) return false;
    const char first = text[0];
    if (!in_quotes && !((first >= 'a' && first <= 'z') || (first >= 'A' && first <= 'Z'))) return false;
    const std::string_view inner = in_quotes ? text.substr(1, text.size() - 2) : text;
    return inner.find('"') == std::string_view::npos;
}

std::vector<std::string_view> split(std::string_view text, char by) {
    std::vector<std::string_view> parts;
    while (true) {
        const size_t end = text.find(by);
        parts.push_back(text.substr(0, end));
        if (end == std::string_view::npos) return parts;
        text.remove_prefix(end + 1);
    }
}

bool space(char c) {
    return c == ' ' || c == '\t' || c == '\r';
}

// The words of a line; a quoted value may hold spaces.
std::vector<std::string_view> words_of(std::string_view line) {
    std::vector<std::string_view> words;
    size_t at = 0;
    while (at < line.size()) {
        while (at < line.size() && space(line[at])) at++;
        const size_t start = at;
        bool in_quotes = false;
        while (at < line.size() && (in_quotes || !space(line[at]))) {
            const unsigned char c = static_cast<unsigned char>(line[at]);
            if (c >= 127 || (c < 32 && !space(line[at]))) throw Problem{"it holds signs that are not ASCII"};
            if (c == '"') in_quotes = !in_quotes;
            at++;
        }
        if (at > start) words.push_back(line.substr(start, at - start));
    }
    return words;
}

void check_array(const ParamLayer& layer, int key, const std::vector<std::string_view>& parts) {
    if (parts.size() > kMaxArray) {
        throw Problem{"layer '" + layer.name + "': the array " + std::to_string(key) + " is too long"};
    }
    double ignored;
    for (const std::string_view part : parts) {
        if (!parse_float(part, ignored)) {
            throw Problem{"layer '" + layer.name + "': " + std::to_string(key) + " is not an array of numbers"};
        }
    }
}

void add_value(ParamLayer& layer, std::string_view item) {
    const size_t equals = item.find('=');
    int64_t key = 0;
    if (equals == std::string_view::npos || equals == 0 || !parse_integer(item.substr(0, equals), key)) {
        throw Problem{"layer '" + layer.name + "': '" + std::string(item.substr(0, 40)) + "' is not 'id=value'"};
    }
    std::string_view value = item.substr(equals + 1);
    const bool old_array = key <= kOldArray;
    const int64_t plain = old_array ? kOldArray - key : key;
    if (plain < 0 || plain >= kMaxId || layer.has(int(plain))) {
        throw Problem{"layer '" + layer.name + "': the id " + std::to_string(key) + " cannot be, or stands twice"};
    }
    double ignored;
    if (old_array) {
        std::vector<std::string_view> parts = split(value, ',');
        int64_t length = -1;
        if (!parse_integer(parts[0], length) || length != int64_t(parts.size()) - 1) {
            throw Problem{"layer '" + layer.name + "': the array " + std::to_string(key) + " has another length"};
        }
        parts.erase(parts.begin());
        check_array(layer, int(plain), parts);
        value.remove_prefix(std::min(value.size(), value.find(',') == std::string_view::npos
                                                       ? value.size()
                                                       : value.find(',') + 1));
        layer.params[int(plain)] = std::string(value) + ",";  // a comma marks an array
        return;
    }
    if (!parse_float(value, ignored) && !is_string(value)) {
        std::vector<std::string_view> parts = split(value, ',');
        if (parts.size() < 2) {
            throw Problem{"layer '" + layer.name + "': " + std::to_string(key) + " has no usable value"};
        }
        if (parts.back().empty()) parts.pop_back();  // a trailing comma marks an array of one
        check_array(layer, int(plain), parts);
    }
    layer.params[int(plain)] = std::string(value);
}

ParamLayer parse_layer(std::string_view line) {
    const std::vector<std::string_view> words = words_of(line);
    if (words.size() < 4) throw Problem{"a layer needs a type, a name and two counts"};
    ParamLayer layer;
    layer.type = std::string(words[0]);
    layer.name = std::string(words[1]);
    int64_t inputs = 0, outputs = 0;
    if (!parse_integer(words[2], inputs) || !parse_integer(words[3], outputs) || inputs < 0 ||
        outputs < 0 || inputs > kMaxLayers || outputs > kMaxLayers) {
        throw Problem{"the numbers of inputs and outputs cannot be"};
    }
    const size_t fixed = 4 + size_t(inputs) + size_t(outputs);
    if (words.size() < fixed) throw Problem{"layer '" + layer.name + "' is cut off"};
    for (size_t i = 0; i < fixed; i++) {
        if (words[i].size() > kMaxName - 1 || words[i].find('=') != std::string_view::npos ||
            words[i].find('"') != std::string_view::npos) {
            throw Problem{"a layer has a name that is too long or holds '=' or '\"'"};
        }
    }
    for (size_t i = 4; i < fixed; i++) {
        (i < 4 + size_t(inputs) ? layer.inputs : layer.outputs).emplace_back(words[i]);
    }
    for (size_t i = fixed; i < words.size(); i++) add_value(layer, words[i]);
    return layer;
}

}  // namespace

int64_t ParamLayer::integer(int key, int64_t otherwise) const {
    const auto found = params.find(key);
    if (found == params.end()) return otherwise;
    int64_t value = 0;
    if (!parse_integer(found->second, value)) {
        throw bad_input("ncnn layer '" + name + "': " + std::to_string(key) + "=" +
                        found->second.substr(0, 40) + " is not an integer.");
    }
    return value;
}

double ParamLayer::number(int key, double otherwise) const {
    const auto found = params.find(key);
    if (found == params.end()) return otherwise;
    double value = 0.0;
    if (!parse_float(found->second, value)) {
        throw bad_input("ncnn layer '" + name + "': " + std::to_string(key) + "=" +
                        found->second.substr(0, 40) + " is not a number.");
    }
    return value;
}

std::vector<double> ParamLayer::numbers(int key) const {
    std::vector<double> out;
    const auto found = params.find(key);
    if (found == params.end()) return out;
    for (const std::string_view part : split(found->second, ',')) {
        if (part.empty()) continue;
        double value = 0.0;
        if (!parse_float(part, value)) {
            throw bad_input("ncnn layer '" + name + "': " + std::to_string(key) + " is no array of numbers.");
        }
        out.push_back(value);
    }
    return out;
}

std::vector<int64_t> ParamLayer::integers(int key) const {
    std::vector<int64_t> out;
    for (const double value : numbers(key)) {
        if (value != std::floor(value) || std::fabs(value) > INT32_MAX) {
            throw bad_input("ncnn layer '" + name + "': " + std::to_string(key) + " is no array of integers.");
        }
        out.push_back(int64_t(value));
    }
    return out;
}

std::vector<std::string> ParamGraph::blobs() const {
    std::vector<std::string> out;
    for (const ParamLayer& layer : layers) {
        out.insert(out.end(), layer.outputs.begin(), layer.outputs.end());
    }
    return out;
}

std::vector<std::string> ParamGraph::inputs() const {
    std::vector<std::string> out;
    for (const ParamLayer& layer : layers) {
        if (layer.type == "Input") out.insert(out.end(), layer.outputs.begin(), layer.outputs.end());
    }
    return out;
}

ParamGraph parse_param(std::string_view text, const std::string& what) {
    size_t number = 0;
    auto refused = [&](const std::string& problem) {
        return bad_input(what + " is not a valid ncnn graph: " +
                             (number ? "line " + std::to_string(number) + ": " : "") + problem + ".",
                         "It is cut off, edited wrongly, or no .param in text form: export it again.");
    };
    const std::vector<std::string_view> lines = split(text, '\n');
    try {
        const std::vector<std::string_view> magic = words_of(lines[0]);
        if (magic.size() != 1 || magic[0] != "7767517") throw Problem{"the first line is not 7767517"};
        int64_t layer_count = 0, blob_count = 0;
        const std::vector<std::string_view> counts = words_of(lines.size() > 1 ? lines[1] : "");
        if (counts.size() != 2 || !parse_integer(counts[0], layer_count) ||
            !parse_integer(counts[1], blob_count)) {
            throw Problem{"the second line is not 'LAYERS BLOBS'"};
        }
        if (layer_count < 1 || layer_count > kMaxLayers || blob_count < 1 || blob_count > 4 * kMaxLayers) {
            throw Problem{"so many layers or blobs cannot be"};
        }
        ParamGraph graph;
        std::unordered_set<std::string> made;
        for (size_t i = 2; i < lines.size(); i++) {
            number = i + 1;
            if (words_of(lines[i]).empty()) continue;
            ParamLayer layer = parse_layer(lines[i]);
            for (const std::string& name : layer.inputs) {
                if (made.count(name) == 0) {
                    throw Problem{"layer '" + layer.name + "' takes '" + name + "', which nothing has made"};
                }
            }
            for (const std::string& name : layer.outputs) {
                if (!made.insert(name).second) {
                    throw Problem{"layer '" + layer.name + "' makes '" + name + "' a second time"};
                }
            }
            graph.layers.push_back(std::move(layer));
            if (int64_t(graph.layers.size()) > layer_count) break;
        }
        number = 0;
        if (int64_t(graph.layers.size()) != layer_count) throw Problem{"it has another number of layers than it says"};
        if (int64_t(made.size()) != blob_count) throw Problem{"it has another number of blobs than it says"};
        return graph;
    } catch (const Problem& problem) {
        throw refused(problem.text);
    }
}

}  // namespace edgekit
