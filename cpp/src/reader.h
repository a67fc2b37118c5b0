// Typed access to the members of a JSON object that came from outside: what is missing or of another
// kind is an Error (bad input) that names the file and the key.
#pragma once

#include <string>
#include <vector>

#include "error.h"
#include "json.h"
#include "tensor.h"

namespace edgekit {

class JsonReader {
public:
    explicit JsonReader(std::string file) : file_(std::move(file)) {}

    Error fail(const std::string& problem) const;
    const Json& object(const Json& value, const char* key) const;
    const std::vector<Json>& objects(const Json& value, const char* key) const;
    const std::string& text(const Json& value, const char* key) const;
    std::string optional_text(const Json& value, const char* key) const;
    // A list of texts; empty where it is missing.
    std::vector<std::string> texts(const Json& value, const char* key) const;
    double number(const Json& value, const char* key) const;
    // A whole number of 0 to `most`.
    int64_t whole(const Json& value, const char* key, int64_t most) const;
    // 64 lower-case hex digits.
    const std::string& sha256(const Json& value, const char* key) const;
    // Sizes of 1 and more, at most `max_rank` of them.
    Shape shape(const Json& value, const char* key, size_t max_rank) const;

private:
    std::string file_;
};

}  // namespace edgekit
