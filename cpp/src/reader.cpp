#include "reader.h"

namespace edgekit {

Error JsonReader::fail(const std::string& problem) const {
    return bad_input(file_ + ": " + problem + ".", "Copy the bundle again, or export it again.");
}

const Json& JsonReader::object(const Json& value, const char* key) const {
    const Json* item = value.find(key);
    if (!item || !item->is_object()) throw fail(std::string("'") + key + "' must be an object");
    return *item;
}

const std::vector<Json>& JsonReader::objects(const Json& value, const char* key) const {
    const Json* item = value.find(key);
    bool good = item && item->is_array();
    if (good) {
        for (const Json& entry : item->items()) good = good && entry.is_object();
    }
    if (!good) throw fail(std::string("'") + key + "' must be a list of objects");
    return item->items();
}

const std::string& JsonReader::text(const Json& value, const char* key) const {
    const Json* item = value.find(key);
    if (!item || !item->is_text()) throw fail(std::string("'") + key + "' must be a string");
    return item->text();
}

std::string JsonReader::optional_text(const Json& value, const char* key) const {
    return value.find(key) ? text(value, key) : std::string();
}

std::vector<std::string> JsonReader::texts(const Json& value, const char* key) const {
    std::vector<std::string> out;
    const Json* item = value.find(key);
    if (!item) return out;
    bool good = item->is_array();
    for (const Json& entry : item->items()) {
        good = good && entry.is_text();
        out.push_back(entry.text());
    }
    if (!good) throw fail(std::string("'") + key + "' must be a list of strings");
    return out;
}

double JsonReader::number(const Json& value, const char* key) const {
    const Json* item = value.find(key);
    if (!item || !item->is_number()) throw fail(std::string("'") + key + "' must be a number");
    return item->number();
}

int64_t JsonReader::whole(const Json& value, const char* key, int64_t most) const {
    const Json* item = value.find(key);
    if (!item || !item->is_integer() || item->integer() < 0 || item->integer() > most) {
        throw fail(std::string("'") + key + "' must be a whole number from 0 to " + std::to_string(most));
    }
    return item->integer();
}

const std::string& JsonReader::sha256(const Json& value, const char* key) const {
    const std::string& digest = text(value, key);
    if (digest.size() != 64 || digest.find_first_not_of("0123456789abcdef") != std::string::npos) {
        throw fail(std::string("'") + key + "' must be 64 hex digits");
    }
    return digest;
}

Shape JsonReader::shape(const Json& value, const char* key, size_t max_rank) const {
    constexpr int64_t most = int64_t(1) << 28;
    const Json* item = value.find(key);
    Shape out;
    int64_t count = 1;
    bool good = item && item->is_array() && !item->items().empty() && item->items().size() <= max_rank;
    if (good) {
        for (const Json& size : item->items()) {
            good = good && size.is_integer() && size.integer() > 0 && size.integer() <= most;
            if (!good) break;
            out.push_back(size.integer());
            count *= size.integer();
            good = count <= most;
            if (!good) break;
        }
    }
    if (!good) throw fail(std::string("'") + key + "' is no usable shape");
    return out;
}

}  // namespace edgekit
