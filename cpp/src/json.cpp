#include "json.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <unordered_set>

#include "error.h"
#include "utf8.h"

namespace edgekit {

class JsonParser {
public:
    JsonParser(std::string_view text, const std::string& what, int max_depth)
        : text_(text), what_(what), max_depth_(max_depth) {}

    Json run() {
        Json value = parse(0);
        skip_space();
        if (at_ != text_.size()) throw fail("text behind the end of the value");
        return value;
    }

private:
    Error fail(const std::string& problem) const {
        size_t line = 1, start = 0;
        for (size_t i = 0; i < at_ && i < text_.size(); i++) {
            if (text_[i] == '\n') {
                line++;
                start = i + 1;
            }
        }
        return bad_input(what_ + " is not valid JSON: " + problem + " (line " + std::to_string(line) +
                             ", column " + std::to_string(at_ - start + 1) + ").",
                         "Copy the file again, or export again.");
    }

    void skip_space() {
        while (at_ < text_.size()) {
            const char c = text_[at_];
            if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return;
            at_++;
        }
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    void expect_word(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) throw fail("an unknown word");
        at_ += word.size();
    }

    Json parse(int depth) {
        if (depth > max_depth_) throw fail("nested too deeply");
        if (++values_ > kMaxValues) throw fail("too many values");
        skip_space();
        if (at_ >= text_.size()) throw fail("it ends early");
        Json value;
        switch (peek()) {
        case '{': parse_object(value, depth); break;
        case '[': parse_array(value, depth); break;
        case '"':
            value.kind_ = Json::Kind::text;
            value.text_ = parse_text();
            break;
        case 't':
            expect_word("true");
            value.kind_ = Json::Kind::boolean;
            value.boolean_ = true;
            break;
        case 'f':
            expect_word("false");
            value.kind_ = Json::Kind::boolean;
            break;
        case 'n': expect_word("null"); break;
        default: parse_number(value);
        }
        return value;
    }

    void parse_object(Json& value, int depth) {
        value.kind_ = Json::Kind::object;
        std::unordered_set<std::string> seen;
        at_++;
        skip_space();
        if (peek() == '}') {
            at_++;
            return;
        }
        while (true) {
            skip_space();
            if (peek() != '"') throw fail("a key is missing");
            std::string key = parse_text();
            if (!seen.insert(key).second) throw fail("a key stands twice in one object");
            skip_space();
            if (peek() != ':') throw fail("':' is missing");
            at_++;
            value.members_.emplace_back(std::move(key), parse(depth + 1));
            skip_space();
            const char c = peek();
            at_++;
            if (c == '}') return;
            if (c != ',') {
                at_--;
                throw fail("',' or '}' is missing");
            }
        }
    }

    void parse_array(Json& value, int depth) {
        value.kind_ = Json::Kind::array;
        at_++;
        skip_space();
        if (peek() == ']') {
            at_++;
            return;
        }
        while (true) {
            value.items_.push_back(parse(depth + 1));
            skip_space();
            const char c = peek();
            at_++;
            if (c == ']') return;
            if (c != ',') {
                at_--;
                throw fail("',' or ']' is missing");
            }
        }
    }

    static bool digit(char c) { return c >= '0' && c <= '9'; }

    void digits() {
        if (!digit(peek())) throw fail("a number without digits, or a sign that begins no value");
        while (digit(peek())) at_++;
    }

    void parse_number(Json& value) {
        const size_t start = at_;
        if (peek() == '-') at_++;
        const size_t whole = at_;
        digits();
        if (text_[whole] == '0' && at_ - whole > 1) throw fail("a number with a leading zero");
        bool real = false;
        if (peek() == '.') {
            real = true;
            at_++;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            real = true;
            at_++;
            if (peek() == '+' || peek() == '-') at_++;
            digits();
        }
        const std::string_view word = text_.substr(start, at_ - start);
        if (!real) {
            const auto result = std::from_chars(word.data(), word.data() + word.size(), value.integer_);
            if (result.ec == std::errc()) {
                value.kind_ = Json::Kind::integer;
                return;
            }
        }
        const auto result = std::from_chars(word.data(), word.data() + word.size(), value.real_);
        // too small a number is 0; too large a one is none
        if (result.ec == std::errc::result_out_of_range) {
            value.real_ = std::strtod(std::string(word).c_str(), nullptr);
        }
        if (!std::isfinite(value.real_)) throw fail("a number that is too large");
        value.kind_ = Json::Kind::real;
    }

    unsigned hex4() {
        unsigned code = 0;
        for (int i = 0; i < 4; i++) {
            const char c = peek();
            unsigned nibble;
            if (digit(c)) nibble = unsigned(c - '0');
            else if (c >= 'a' && c <= 'f') nibble = unsigned(c - 'a') + 10;
            else if (c >= 'A' && c <= 'F') nibble = unsigned(c - 'A') + 10;
            else throw fail("a broken \\u escape");
            code = code * 16 + nibble;
            at_++;
        }
        return code;
    }

    void escape(std::string& out) {
        const char c = peek();
        at_++;
        switch (c) {
        case '"': case '\\': case '/': out += c; return;
        case 'b': out += '\b'; return;
        case 'f': out += '\f'; return;
        case 'n': out += '\n'; return;
        case 'r': out += '\r'; return;
        case 't': out += '\t'; return;
        case 'u': break;
        default: throw fail("an unknown escape");
        }
        unsigned code = hex4();
        if (code >= 0xDC00 && code < 0xE000) throw fail("half a surrogate pair");
        if (code >= 0xD800 && code < 0xDC00) {
            if (text_.substr(at_, 2) != "\\u") throw fail("half a surrogate pair");
            at_ += 2;
            const unsigned low = hex4();
            if (low < 0xDC00 || low >= 0xE000) throw fail("half a surrogate pair");
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        append_utf8(out, code);
    }

    std::string parse_text() {
        std::string out;
        at_++;
        while (true) {
            if (at_ >= text_.size()) throw fail("it ends within a text");
            const unsigned char c = static_cast<unsigned char>(text_[at_]);
            if (c == '"') {
                at_++;
                return out;
            }
            if (c < 0x20) throw fail("a control sign within a text");
            if (c == '\\') {
                at_++;
                escape(out);
                continue;
            }
            const size_t length = utf8_length(text_.substr(at_));
            if (length == 0) throw fail("a sign that is not UTF-8");
            out.append(text_.substr(at_, length));
            at_ += length;
        }
    }

    // a value of one byte becomes more than a hundred in memory
    static constexpr size_t kMaxValues = 2'000'000;

    std::string_view text_;
    const std::string& what_;
    int max_depth_;
    size_t values_ = 0;
    size_t at_ = 0;
};

Json Json::parse(std::string_view text, const std::string& what, int max_depth) {
    return JsonParser(text, what, max_depth).run();
}

const Json* Json::find(std::string_view key) const {
    for (const Member& member : members_) {
        if (member.first == key) return member.second.is_null() ? nullptr : &member.second;
    }
    return nullptr;
}

}  // namespace edgekit
