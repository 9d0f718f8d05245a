#include "image_header.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "error.h"

namespace detector {
namespace {

using Kind = ImageHeader::Kind;

// Reads integers of a file's bytes; beyond their end is an error, never memory.
class Reader {
 public:
  explicit Reader(const Bytes& content) : content_(content) {}

  bool Holds(size_t offset, const std::string& bytes) const {
    return offset + bytes.size() <= content_.size() && std::equal(bytes.begin(), bytes.end(), content_.begin() + offset,
                                                                 [](char a, uint8_t b) { return uint8_t(a) == b; });
  }
  uint32_t Byte(size_t offset) const {
    if (offset >= content_.size()) throw UserError("is cut off");
    return content_[offset];
  }
  int64_t BigEndian(size_t offset, int num_bytes) const {
    int64_t value = 0;
    for (int i = 0; i < num_bytes; ++i) value = value << 8 | Byte(offset + i);
    return value;
  }
  int64_t LittleEndian(size_t offset, int num_bytes) const {
    int64_t value = 0;
    for (int i = num_bytes - 1; i >= 0; --i) value = value << 8 | Byte(offset + i);
    return value;
  }

 private:
  const Bytes& content_;
};

// Chunk IHDR comes first and starts with the two sizes.
ImageHeader PngHeader(const Reader& reader) {
  return {Kind::kPng, reader.BigEndian(16, 4), reader.BigEndian(20, 4)};
}

// The height is negative when the rows run from top to bottom; the oldest kind has sizes of 16 bits.
ImageHeader BmpHeader(const Reader& reader) {
  if (reader.LittleEndian(14, 4) == 12) {
    return {Kind::kBmp, reader.LittleEndian(18, 2), reader.LittleEndian(20, 2)};
  }
  const auto height = static_cast<int32_t>(reader.LittleEndian(22, 4));
  return {Kind::kBmp, reader.LittleEndian(18, 4), std::abs(static_cast<int64_t>(height))};
}

// Three kinds of first chunk: extended, lossless (two fields of 14 bits, minus one), lossy (14 bits).
ImageHeader WebpHeader(const Reader& reader) {
  constexpr int64_t k14Bits = (1 << 14) - 1;
  if (reader.Holds(12, "VP8X")) {
    return {Kind::kWebp, reader.LittleEndian(24, 3) + 1, reader.LittleEndian(27, 3) + 1};
  }
  if (reader.Holds(12, "VP8L")) {
    const int64_t packed = reader.LittleEndian(21, 4);
    return {Kind::kWebp, (packed & k14Bits) + 1, (packed >> 14 & k14Bits) + 1};
  }
  return {Kind::kWebp, reader.LittleEndian(26, 2) & k14Bits, reader.LittleEndian(28, 2) & k14Bits};
}

// Sizes stand in the start-of-frame segment (markers C0..CF but for C4, C8 and CC, which are tables).
bool IsStartOfFrame(uint32_t marker) {
  return marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}

// Walks the segments to the first scan. The end marker must come after it: one inside an embedded thumbnail, which
// lies in an earlier segment, says nothing about the image.
ImageHeader JpegHeader(const Reader& reader, const Bytes& content) {
  ImageHeader header{Kind::kJpeg, 0, 0};
  size_t offset = 2;
  while (true) {
    if (reader.Byte(offset) != 0xFF) throw UserError("is damaged");
    const uint32_t marker = reader.Byte(offset + 1);
    if (marker == 0xFF) {  // markers may be filled up in front
      ++offset;
      continue;
    }
    if (marker == 0xDA) break;  // start of scan
    if (IsStartOfFrame(marker)) {
      header.height = reader.BigEndian(offset + 5, 2);
      header.width = reader.BigEndian(offset + 7, 2);
    }
    offset += 2 + reader.BigEndian(offset + 2, 2);
  }
  const uint8_t end_marker[] = {0xFF, 0xD9};
  if (std::search(content.begin() + offset, content.end(), end_marker, end_marker + 2) == content.end()) {
    throw UserError("is cut off");
  }
  return header;
}

}  // namespace

ImageHeader ReadHeader(const Bytes& content) {
  const Reader reader(content);
  if (reader.Holds(0, "\xFF\xD8\xFF")) return JpegHeader(reader, content);
  if (reader.Holds(0, "\x89PNG\r\n\x1A\n")) return PngHeader(reader);
  if (reader.Holds(0, "BM")) return BmpHeader(reader);
  if (reader.Holds(0, "RIFF") && reader.Holds(8, "WEBP")) return WebpHeader(reader);
  throw UserError("is not an image (JPEG, PNG, BMP or WEBP)");
}

}  // namespace detector
