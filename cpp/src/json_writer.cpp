#include <charconv>
#include <cmath>
#include <cstdio>

#include "json.h"
#include "utf8.h"

namespace edgekit {

std::string quoted(std::string_view text) {
    std::string out = "\"";
    size_t at = 0;
    while (at < text.size()) {
        const unsigned char c = static_cast<unsigned char>(text[at]);
        const size_t length = utf8_length(text.substr(at));
        if (length == 0) {
            // a file name may hold any byte; JSON may not
            out += "\\ufffd";
            at++;
        } else if (c == '"' || c == '\\') {
            out += '\\';
            out += char(c);
            at++;
        } else if (c < 0x20 || c == 0x7f) {
            char escape[8];
            std::snprintf(escape, sizeof(escape), "\\u%04x", c);
            out += escape;
            at++;
        } else {
            out.append(text.substr(at, length));
            at += length;
        }
    }
    return out + '"';
}

void JsonWriter::line() {
    out_ += '\n';
    out_.append(2 * filled_.size(), ' ');
}

void JsonWriter::before_value() {
    if (after_key_) {
        after_key_ = false;
        return;
    }
    if (filled_.empty()) return;
    if (filled_.back()) out_ += ',';
    filled_.back() = true;
    line();
}

JsonWriter& JsonWriter::open(char sign) {
    before_value();
    out_ += sign;
    filled_.push_back(false);
    return *this;
}

JsonWriter& JsonWriter::close(char sign) {
    const bool filled = filled_.back();
    filled_.pop_back();
    if (filled) line();
    out_ += sign;
    return *this;
}

JsonWriter& JsonWriter::key(std::string_view name) {
    before_value();
    out_ += quoted(name);
    out_ += ": ";
    after_key_ = true;
    return *this;
}

JsonWriter& JsonWriter::value(std::string_view text) {
    before_value();
    out_ += quoted(text);
    return *this;
}

JsonWriter& JsonWriter::value(bool flag) {
    before_value();
    out_ += flag ? "true" : "false";
    return *this;
}

JsonWriter& JsonWriter::value(int64_t number) {
    before_value();
    out_ += std::to_string(number);
    return *this;
}

namespace {

template <class T>
std::string shortest(T number) {
    char buffer[64];
    const auto result = std::to_chars(buffer, buffer + sizeof(buffer), number);
    return std::string(buffer, result.ptr);
}

}  // namespace

JsonWriter& JsonWriter::value(double number) {
    if (!std::isfinite(number)) return null();
    before_value();
    out_ += shortest(number);
    return *this;
}

JsonWriter& JsonWriter::value(float number) {
    if (!std::isfinite(number)) return null();
    before_value();
    out_ += shortest(number);
    return *this;
}

JsonWriter& JsonWriter::null() {
    before_value();
    out_ += "null";
    return *this;
}

}  // namespace edgekit
