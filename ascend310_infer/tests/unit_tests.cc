// Tests of the units that need no device. Exit code 0 when all hold.
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>

#include "detections.h"
#include "error.h"
#include "files.h"
#include "image_header.h"
#include "image_list.h"
#include "model_contract.h"
#include "options.h"
#include "timing.h"

namespace {

namespace fs = std::filesystem;
using detector::Bytes;

int num_failures = 0;

void Check(bool holds, const std::string& what) {
  if (holds) return;
  std::cerr << "FAILED: " << what << '\n';
  ++num_failures;
}

// The action throws `Error` and its message holds `words`.
template <typename Error>
void CheckThrows(const std::function<void()>& action, const std::string& words) {
  try {
    action();
  } catch (const Error& error) {
    Check(std::string(error.what()).find(words) != std::string::npos, "'" + words + "' not in: " + error.what());
    return;
  }
  Check(false, "no error with '" + words + "'");
}

// A new folder that goes away with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "detector tests XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~TemporaryFolder() { fs::remove_all(path_); }
  fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
  fs::path path_;
};

void Touch(const fs::path& path) { std::ofstream(path) << "x"; }

Bytes BytesOf(const std::string& text) { return Bytes(text.begin(), text.end()); }

void TestOptions() {
  const std::vector<std::string> least = {"--mindir_path=a b.mindir", "--dataset_path=d=e", "--device_type=CPU"};
  const auto with = [&](const std::string& argument) {
    auto arguments = least;
    arguments.push_back(argument);
    return detector::ParseOptions(arguments);
  };
  const detector::Options options = detector::ParseOptions(least);
  Check(options.mindir_path == "a b.mindir" && options.dataset_path == "d=e", "paths are taken as they are");
  Check(options.keep_ratio && options.device_id == 0 && !options.image_width, "defaults");
  Check(with("--image_width=1280").image_width == 1280, "image_width");
  Check(!with("--keep_ratio=False").keep_ratio, "keep_ratio");
  for (const auto& [argument, words] : std::vector<std::pair<std::string, std::string>>{
           {"--device_id=-1", "device_id"}, {"--device_id=1x", "'1x'"}, {"--image_width=0", "from 1"},
           {"--image_width=99999999999", "image_width"}, {"--keep_ratio=yes", "true or false"},
           {"--device_type=GPU", "twice"}, {"--with=1", "'--with' is not a flag"}, {"image.png", "--key=value"},
           {"--result_path=", "no value"}}) {
    CheckThrows<detector::UsageError>([&, text = argument] { with(text); }, words);
  }
  CheckThrows<detector::UsageError>([] { detector::ParseOptions({"--mindir_path=a"}); }, "dataset_path");
  CheckThrows<detector::UsageError>([] { detector::ParseDevice("device_type", "TPU"); },
                                    "'TPU' is not a value of device_type; expected Ascend310, Ascend, GPU or CPU");
  for (const std::string name : {"Ascend310", "Ascend", "GPU", "CPU"}) {
    Check(detector::DeviceName(detector::ParseDevice("device_type", name)) == name, "device " + name);
  }
}

void TestImageList() {
  const TemporaryFolder folder;
  CheckThrows<detector::UserError>([&] { detector::ListImages(folder / "none"); }, "none: is not a folder");
  CheckThrows<detector::UserError>([&] { detector::ListImages(folder / ""); }, "holds no image");
  for (const char* name : {"notes.txt", "noextension", ".hidden.jpg", ".jpg"}) Touch(folder / name);
  fs::create_directory(folder / "folder.png");
  fs::create_symlink(folder / "none", folder / "link.png");
  CheckThrows<detector::UserError>([&] { detector::ListImages(folder / ""); },
                                   "holds no image; expected files named .bmp, .jfif, .jpe, .jpeg, .jpg, .png or "
                                   ".webp; 6 other files or folders left out: ");
  const std::vector<std::string> names = {"a b.png", "b.JPG",  "c.d.webp", "e.JFIF",
                                          "f.jpe",   "g.jpeg", "j.bmp"};
  for (const std::string& name : names) Touch(folder / name);
  const auto [images, left_out] = detector::ListImages(folder / "");
  Check(images.size() == names.size(), "seven images");
  for (size_t i = 0; i < names.size(); ++i) Check(images[i].filename() == names[i], names[i] + " sorted by name");
  Check(images[2].stem() == "c.d", "only the last extension goes");
  Check(detector::LeftOutLine(left_out) == "6 other files or folders left out: .hidden.jpg; .jpg; folder.png; link.png; "
                                           "noextension; notes.txt", "what is left out");
  Check(detector::LeftOutLine(std::vector<fs::path>(12, "a")) ==
            "12 other files or folders left out: a; a; a; a; a; a; a; a; a; a and 2 more", "the first ten by name");
  Check(detector::LeftOutLine({"x/a"}) == "1 other file or folder left out: a" && detector::LeftOutLine({}).empty(),
        "one or nothing left out");
  Touch(folder / "b.png");
  CheckThrows<detector::UserError>([&] { detector::ListImages(folder / ""); }, "the same result files");
}

void TestDetections() {
  const TemporaryFolder folder;
  const detector::Detections float32{Bytes(40, 1), Bytes(8, 2), Bytes(2, 3)};
  detector::CheckRows(float32);
  detector::CheckRows({Bytes(20), Bytes(8), Bytes(2)});  // float16
  CheckThrows<detector::UserError>([] { detector::CheckRows({Bytes(40), Bytes(8), Bytes(3)}); }, "40, 8 and 3 bytes");
  CheckThrows<detector::UserError>([] { detector::CheckRows({Bytes(40), Bytes(4), Bytes(2)}); }, "40, 4 and 2");
  CheckThrows<detector::UserError>([] { detector::CheckRows({Bytes(), Bytes(), Bytes()}); }, "0, 0 and 0");
  detector::WriteDetections(folder / "", "a b.c", float32);
  Check(detector::ReadFile(folder / "a b.c_0.bin", 100) == float32.boxes, "boxes file");
  Check(detector::ReadFile(folder / "a b.c_1.bin", 100) == float32.labels, "labels file");
  Check(detector::ReadFile(folder / "a b.c_2.bin", 100) == float32.mask, "mask file");
  Check(std::distance(fs::directory_iterator(folder / ""), {}) == 3, "no partial file stays");
  CheckThrows<detector::UserError>([&] { detector::WriteDetections(folder / "none", "a", float32); },
                                   "none/a_0.bin: cannot be written");
}

void TestFiles() {
  const TemporaryFolder folder;
  CheckThrows<detector::UserError>([&] { detector::ReadFile(folder / "none", 9); }, "none: cannot be read");
  CheckThrows<detector::UserError>([&] { detector::ReadFile(folder / "", 9); }, "is a folder");
  std::ofstream(folder / "empty").close();
  CheckThrows<detector::UserError>([&] { detector::ReadFile(folder / "empty", 9); }, "empty: is empty");
  detector::WriteFile(folder / "ten", "0123456789", 10);
  CheckThrows<detector::UserError>([&] { detector::ReadFile(folder / "ten", 9); }, "10 bytes; the limit is 9");
  detector::MakeFolder(folder / "x/y");
  detector::MakeFolder(folder / "x/y");
  Check(fs::is_directory(folder / "x/y"), "folder made");
  CheckThrows<detector::UserError>([&] { detector::MakeFolder(folder / "ten"); }, "ten: is not a folder");
}

void TestHeaders() {
  // A BMP of three pixels by two rows that run downwards, to the end of its sizes.
  const Bytes bmp = BytesOf(std::string("BM\0\0\0\0\0\0\0\0\0\0\0\0\x28\0\0\0\x03\0\0\0\xFE\xFF\xFF\xFF", 26));
  Check(detector::ReadHeader(bmp).width == 3 && detector::ReadHeader(bmp).height == 2, "size of a BMP");
  const Bytes webp = BytesOf(std::string("RIFF\0\0\0\0WEBPVP8X\x0A\0\0\0\0\0\0\0\x04\x01\0\x02\0\0", 30));
  Check(detector::ReadHeader(webp).width == 261 && detector::ReadHeader(webp).height == 3, "size of a WEBP");
  // A JPEG whose thumbnail segment holds an end marker, with and without one of its own.
  const std::string jpeg("\xFF\xD8\xFF\xE1\0\x04\xFF\xD9\xFF\xC0\0\x07\x08\0\x05\0\x06\xFF\xDA\0\x02zzz", 24);
  CheckThrows<detector::UserError>([&] { detector::ReadHeader(BytesOf(jpeg)); }, "is cut off");
  const detector::ImageHeader header = detector::ReadHeader(BytesOf(jpeg + "\xFF\xD9"));
  Check(header.height == 5 && header.width == 6, "size of a JPEG");
  for (size_t length = 3; length < jpeg.size(); ++length) {
    CheckThrows<detector::UserError>([&] { detector::ReadHeader(BytesOf(jpeg.substr(0, length))); }, "is cut off");
  }
  CheckThrows<detector::UserError>([] { detector::ReadHeader(BytesOf("\x89PNG\r\n\x1A\n")); }, "is cut off");
  CheckThrows<detector::UserError>([] { detector::ReadHeader(BytesOf("GIF89a")); }, "is not an image");
  CheckThrows<detector::UserError>([] { detector::ReadHeader(BytesOf("<html>")); }, "is not an image");
}

void TestModelContract() {
  const detector::Shape metadata = {1, 4}, fixed = {1, 3, 64, 128}, open = {1, 3, -1, -1};
  detector::Options none, given;
  none.keep_ratio = false;
  given.image_width = 320;
  given.image_height = 256;
  const auto canvas = [&](const detector::Shape& image, const detector::Options& options) {
    return detector::CanvasOfModel({image, metadata}, options);
  };
  Check(canvas(fixed, none).width == 128 && canvas(fixed, none).height == 64, "the model's size");
  Check(!canvas(fixed, none).keep_ratio && canvas(open, given).keep_ratio, "keep_ratio is passed on");
  Check(canvas(open, none).width == 1280 && canvas(open, none).height == 768, "the published size");
  Check(canvas(open, given).width == 320 && canvas(open, given).height == 256, "the size given");
  Check(detector::IsOpen(open) && !detector::IsOpen(fixed), "open sizes are negative");
  CheckThrows<detector::UserError>([&] { canvas(fixed, given); }, "width 128 and height 64");
  for (const detector::Shape& image : std::vector<detector::Shape>{
           {2, 3, 64, 128}, {-1, 3, 64, 128}, {1, 64, 128, 3}, {3, 64, 128}, {1, 3, 0, 128}}) {
    CheckThrows<detector::UserError>([&] { canvas(image, none); }, "expected image (1, 3, H, W) and metadata (1, 4)");
  }
  CheckThrows<detector::UserError>([&] { detector::CanvasOfModel({fixed}, none); }, "has inputs (1, 3, 64, 128);");
  CheckThrows<detector::UserError>([&] { detector::CanvasOfModel({fixed, {1, 3}}, none); }, "(1, 3, 64, 128), (1, 3)");
}

void TestTiming() {
  const TemporaryFolder folder;
  detector::Timing timing;
  CheckThrows<std::logic_error>([&] { timing.Write(folder / ""); }, "no images");
  timing.Add(std::chrono::microseconds(1500));
  timing.Add(std::chrono::microseconds(2500));
  timing.Write(folder / "");
  Check(detector::ReadFile(folder / "test_perform_static.txt", 100) ==
            BytesOf("NN inference cost average time: 2 ms of infer_count 2\n"),
        "the published line");
}

}  // namespace

int main() {
  TestOptions();
  TestImageList();
  TestDetections();
  TestFiles();
  TestHeaders();
  TestModelContract();
  TestTiming();
  std::cout << (num_failures == 0 ? "all hold" : std::to_string(num_failures) + " failed") << std::endl;
  return num_failures == 0 ? 0 : 1;
}
