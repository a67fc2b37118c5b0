// A strict JSON reader (RFC 8259) with limits, and a writer.
//
// The reader refuses what Python's json module would let pass in other people's files: repeated keys,
// NaN and Infinity, text behind the value, invalid UTF-8, lone surrogates, nesting deeper than
// `max_depth`, and files larger than the caller allows.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace edgekit {

class Json {
public:
    enum class Kind { null, boolean, integer, real, text, array, object };
    using Member = std::pair<std::string, Json>;

    Json() = default;

    // Parses `text`; `what` names it in messages. Throws Error (bad input) with line and column.
    static Json parse(std::string_view text, const std::string& what, int max_depth = 64);

    Kind kind() const { return kind_; }
    bool is_null() const { return kind_ == Kind::null; }
    bool is_object() const { return kind_ == Kind::object; }
    bool is_array() const { return kind_ == Kind::array; }
    bool is_text() const { return kind_ == Kind::text; }
    bool is_integer() const { return kind_ == Kind::integer; }
    bool is_number() const { return kind_ == Kind::integer || kind_ == Kind::real; }
    bool is_boolean() const { return kind_ == Kind::boolean; }

    // These expect the right kind.
    bool boolean() const { return boolean_; }
    int64_t integer() const { return integer_; }
    double number() const { return kind_ == Kind::integer ? double(integer_) : real_; }
    const std::string& text() const { return text_; }
    const std::vector<Json>& items() const { return items_; }
    const std::vector<Member>& members() const { return members_; }

    // The member `key` of an object, nullptr when it is not there or null.
    const Json* find(std::string_view key) const;

private:
    friend class JsonParser;
    Kind kind_ = Kind::null;
    bool boolean_ = false;
    int64_t integer_ = 0;
    double real_ = 0.0;
    std::string text_;
    std::vector<Json> items_;
    std::vector<Member> members_;
};

// Writes one value, indented. Numbers come out in the shortest form that reads back to the same
// value; those that are not finite as null.
class JsonWriter {
public:
    JsonWriter& begin_object() { return open('{'); }
    JsonWriter& end_object() { return close('}'); }
    JsonWriter& begin_array() { return open('['); }
    JsonWriter& end_array() { return close(']'); }
    JsonWriter& key(std::string_view name);
    JsonWriter& value(std::string_view text);
    JsonWriter& value(const char* text) { return value(std::string_view(text)); }
    JsonWriter& value(bool flag);
    JsonWriter& value(int64_t number);
    JsonWriter& value(int number) { return value(int64_t(number)); }
    JsonWriter& value(double number);
    JsonWriter& value(float number);
    JsonWriter& null();

    template <class T>
    JsonWriter& field(std::string_view name, const T& item) {
        return key(name).value(item);
    }

    // The text written so far, with a newline at its end.
    std::string text() const { return out_ + "\n"; }

private:
    JsonWriter& open(char sign);
    JsonWriter& close(char sign);
    void before_value();
    void line();

    std::string out_;
    std::vector<bool> filled_;
    bool after_key_ = false;
};

// The text with control signs, quotes and what is not UTF-8 escaped, in quotes.
std::string quoted(std::string_view text);

}  // namespace edgekit
