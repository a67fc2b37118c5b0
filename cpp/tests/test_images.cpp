// Geometry of the contract, tables, resizing and image files. That the values are bit for bit those of
// the Python package is tested there, with OpenCV at hand (tests/integration/test_runner_*.py).
#include "check.h"
#include "image.h"
#include "preprocess.h"
#include "resize.h"

using namespace edgekit;

namespace {

Contract contract_of(int height, int width) {
    Contract contract;
    contract.height = height;
    contract.width = width;
    return contract;
}

Pixels ramp(int height, int width) {
    Pixels image(height, width, 3);
    for (size_t i = 0; i < image.data.size(); i++) image.data[i] = uint8_t(i * 7 + i / 5);
    return image;
}

bool throws(const std::string& json) {
    return !test::error_of([&] { Contract::from_json(Json::parse(json, "contract"), "contract"); }).empty();
}

}  // namespace

TEST(images_letterbox_places) {
    Placement place;
    const Pixels fitted = fit(ramp(20, 40), contract_of(64, 64), place);
    CHECK(fitted.height == 64 && fitted.width == 64);
    CHECK(place.scale_x == 1.6 && place.scale_y == 1.6 && place.offset_x == 0 && place.offset_y == 16);
    CHECK(fitted.row(15)[0] == 114 && fitted.row(48)[0] == 114 && fitted.row(16)[0] != 114);
    Contract corner = contract_of(64, 64);
    corner.pad_place = "bottom_right";
    corner.pad_value = 0;
    const Pixels cornered = fit(ramp(20, 41), corner, place);
    CHECK(place.offset_x == 0 && place.offset_y == 0 && cornered.row(63)[100] == 0);
    Contract small = contract_of(64, 64);
    small.upscale = false;
    fit(ramp(20, 40), small, place);
    CHECK(place.scale_x == 1.0 && place.offset_x == 12 && place.offset_y == 22);
    // the odd pixel goes to the bottom and right
    fit(ramp(20, 41), small, place);
    CHECK(place.offset_x == 11);
}

TEST(images_other_geometries) {
    Placement place;
    Contract contract = contract_of(30, 20);
    contract.resize = "stretch";
    CHECK(fit(ramp(10, 10), contract, place).height == 30);
    CHECK(place.scale_x == 2.0 && place.scale_y == 3.0);
    contract.resize = "none";
    REFUSED(fit(ramp(10, 10), contract, place), "exactly 30x20");
    CHECK(fit(ramp(30, 20), contract, place).data == ramp(30, 20).data);
    contract = contract_of(20, 20);
    contract.resize = "center_crop";
    contract.crop_fraction = 0.5;
    const Pixels cropped = fit(ramp(40, 80), contract, place);
    CHECK(cropped.height == 20 && cropped.width == 20);
    CHECK(place.scale_y == 1.0 && place.offset_y == -10 && place.offset_x == -30);
    CHECK(cropped.row(0)[0] == ramp(40, 80).row(10)[90]);
    contract = contract_of(20000, 20000);
    contract.resize = "center_crop";
    REFUSED(fit(ramp(1, 3000), contract, place), "too large");
}

TEST(images_values) {
    Contract contract = contract_of(2, 2);
    contract.resize = "none";
    contract.mean = {0.485, 0.456, 0.406};
    contract.std = {0.229, 0.224, 0.225};
    const Pixels image = ramp(2, 2);
    Placement place;
    const Tensor planes = apply(image, contract, place);
    CHECK(planes.shape == (Shape{1, 3, 2, 2}));
    CHECK(planes.values[5] == float((image.data[4] * (1.0 / 255.0) - 0.456) / 0.224));
    contract.layout = "nhwc";
    const Tensor rows = apply(image, contract, place);
    CHECK(rows.shape == (Shape{1, 2, 2, 3}) && rows.values[4] == planes.values[5]);
    contract.color = "bgr";
    contract.mean = {0, 0, 0};
    contract.std = {1, 1, 1};
    CHECK(apply(image, contract, place).values[0] == float(image.data[2] * (1.0 / 255.0)));
    contract.color = "gray";
    contract.mean = {0};
    contract.std = {1};
    CHECK(apply(image, contract, place).shape == (Shape{1, 2, 2, 1}));
}

TEST(images_resize) {
    const Pixels image = ramp(7, 9);
    CHECK(resize_bilinear(image, 7, 9).data == image.data);
    CHECK(resize_nearest(image, 14, 18).row(3)[3 * 5] == image.row(1)[3 * 2]);
    // a flat image stays flat, whatever the size
    for (const int size : {1, 2, 5, 13, 64, 301}) {
        const Pixels flat = resize_bilinear(Pixels(11, 3, 3, 200), size, size);
        for (const uint8_t value : flat.data) CHECK(value >= 199 && value <= 200);
    }
    CHECK(resize_bilinear(Pixels(1, 1, 3, 9), 4, 4).data == Pixels(4, 4, 3, 9).data);
}

TEST(images_contract_is_checked) {
    CHECK(!throws(R"({"height": 3, "width": 4})"));
    CHECK(!throws(R"({"height": 3, "width": 4, "color": "gray"})"));
    for (const char* text :
         {R"({"height": 3})", R"({"height": 0, "width": 4})", R"({"height": 3.5, "width": 4})",
          R"({"height": 3, "width": 4, "colour": "rgb"})", R"({"height": 3, "width": 4, "color": "red"})",
          R"({"height": 3, "width": 4, "std": [1, 0, 1]})", R"({"height": 3, "width": 4, "mean": [1]})",
          R"({"height": 3, "width": 4, "pad_value": 256})", R"({"height": 3, "width": 4, "crop_fraction": 0})",
          R"({"height": 3, "width": 4, "upscale": 1})", R"({"height": 65536, "width": 65536})", "[]", "3"}) {
        CHECK(throws(text));
    }
    Contract contract;
    CHECK(unsupported(contract).empty());
    contract.interpolation = "area";
    CHECK(unsupported(contract).find("area") != std::string::npos);
}

TEST(images_orientation) {
    Pixels image(1, 2, 3);
    image.data = {1, 1, 1, 2, 2, 2};
    CHECK(oriented(image, 1).data == image.data);
    CHECK(oriented(image, 2).data[0] == 2 && oriented(image, 3).data[0] == 2);
    CHECK(oriented(image, 6).height == 2 && oriented(image, 6).data[0] == 1);
    CHECK(oriented(image, 8).height == 2 && oriented(image, 8).data[0] == 2);
    const std::string exif = std::string("\xff\xd8\xff\xe1\x00\x20""Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0", 34) + "\xff\xd9";
    CHECK(exif_orientation(exif) == 6);
    for (size_t size = 0; size < exif.size(); size++) {
        const int found = exif_orientation(exif.substr(0, size));
        CHECK(found >= 1 && found <= 8);
    }
}

TEST(images_containers) {
    CHECK(container_problem("") == "is empty");
    CHECK(container_problem("\xff\xd8\xff\xe0") == "ends inside its headers" || !container_problem("\xff\xd8\xff\xe0").empty());
    CHECK(container_problem("RIFF....WEBPVP8 ").find("does not read") != std::string::npos);
    REFUSED(decode_image("not an image at all", "x.jpg"), "x.jpg");
    REFUSED(decode_image(std::string("\x89PNG\r\n\x1a\n", 8) + std::string(30, 'x'), "x.png"), "x.png");
    // a PPM of 2x1, and one that is cut off
    const Pixels image = decode_image(std::string("P6\n2 1\n255\n") + "abcdef", "x.ppm");
    CHECK(image.width == 2 && image.data[0] == 'a' && image.data[5] == 'f');
}
