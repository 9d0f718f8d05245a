#include "image_list.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>
#include <string>

#include "error.h"

namespace detector {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxNamed = 10;

bool IsImage(const fs::path& path) {
  static const std::set<std::string> kExtensions = {".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp"};
  if (path.filename().string().front() == '.') return false;  // hidden, such as the "._a.jpg" that macOS adds
  std::string extension = path.extension().string();
  for (char& letter : extension) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  return kExtensions.count(extension) == 1;
}

void CheckNames(const std::vector<fs::path>& images) {
  std::map<std::string, fs::path> by_name;
  for (const fs::path& image : images) {
    const auto [other, is_new] = by_name.emplace(image.stem().string(), image);
    if (!is_new) {
      throw UserError(other->second.string() + " and " + image.filename().string() +
                      " would have the same result files. Rename one of them");
    }
  }
}

}  // namespace

ImageList ListImages(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) throw UserError(folder.string() + ": is not a folder of images");
  ImageList list;
  const fs::directory_iterator entries(folder, error);
  if (error) throw UserError(folder.string() + ": cannot be listed (" + error.message() + ")");
  for (const fs::directory_entry& entry : entries) {
    const bool is_image = IsImage(entry.path()) && entry.is_regular_file(error);
    (is_image ? list.images : list.left_out).push_back(entry.path());
  }
  if (list.images.empty()) {
    throw UserError(folder.string() + ": holds no image; expected files named .bmp, .jfif, .jpe, .jpeg, .jpg, .png "
                    "or .webp" + (list.left_out.empty() ? "" : "; " + LeftOutLine(list.left_out)));
  }
  std::sort(list.images.begin(), list.images.end());
  std::sort(list.left_out.begin(), list.left_out.end());
  CheckNames(list.images);
  return list;
}

std::string LeftOutLine(const std::vector<fs::path>& left_out) {
  if (left_out.empty()) return "";
  const size_t num_named = std::min(left_out.size(), kMaxNamed);
  std::string line = std::to_string(left_out.size()) +
                     (left_out.size() == 1 ? " other file or folder" : " other files or folders") + " left out: ";
  for (size_t i = 0; i < num_named; ++i) line += (i == 0 ? "" : "; ") + left_out[i].filename().string();
  if (left_out.size() > num_named) line += " and " + std::to_string(left_out.size() - num_named) + " more";
  return line;
}

}  // namespace detector
