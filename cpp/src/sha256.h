// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace edgekit {

class Sha256 {
public:
    Sha256();
    void add(const void* data, size_t size);
    // The digest as 64 lower-case hex digits; nothing may be added after that.
    std::string hex();

private:
    void block(const uint8_t* data);

    std::array<uint32_t, 8> state_;
    std::array<uint8_t, 64> buffer_{};
    uint64_t total_ = 0;
};

std::string sha256_hex(std::string_view data);

}  // namespace edgekit
