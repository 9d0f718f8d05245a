#include "picture_list.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>
#include <string>

#include "error.h"

namespace detector {

namespace fs = std::filesystem;

namespace {

bool IsPicture(const fs::path& path) {
  static const std::set<std::string> kExtensions = {".jpg", ".jpeg", ".png", ".bmp", ".webp"};
  std::string extension = path.extension().string();
  for (char& letter : extension) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  return kExtensions.count(extension) == 1;
}

void CheckNames(const std::vector<fs::path>& pictures) {
  std::map<std::string, fs::path> by_name;
  for (const fs::path& picture : pictures) {
    const auto [other, is_new] = by_name.emplace(picture.stem().string(), picture);
    if (!is_new) {
      throw UserError(other->second.string() + " and " + picture.filename().string() +
                      " would have the same result files. Rename one of them");
    }
  }
}

}  // namespace

std::vector<fs::path> ListPictures(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) throw UserError(folder.string() + ": is not a folder of pictures");
  std::vector<fs::path> pictures;
  const fs::directory_iterator entries(folder, error);
  if (error) throw UserError(folder.string() + ": cannot be listed (" + error.message() + ")");
  for (const fs::directory_entry& entry : entries) {
    if (IsPicture(entry.path()) && !entry.is_directory(error)) pictures.push_back(entry.path());
  }
  if (pictures.empty()) {
    throw UserError(folder.string() + ": holds no picture; expected files named .jpg, .jpeg, .png, .bmp or .webp");
  }
  std::sort(pictures.begin(), pictures.end());
  CheckNames(pictures);
  return pictures;
}

}  // namespace detector
