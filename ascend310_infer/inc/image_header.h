// Kind and size of an image from the first bytes of its file, before any pixel is decoded.
#ifndef ASCEND310_INFER_IMAGE_HEADER_H_
#define ASCEND310_INFER_IMAGE_HEADER_H_

#include "files.h"

namespace detector {

struct ImageHeader {
  enum class Kind { kJpeg, kPng, kBmp, kWebp };
  Kind kind;
  int64_t width;   // pixels
  int64_t height;  // pixels
};

// Throws UserError, without the file's name, when the bytes are not a JPEG, PNG, BMP or WEBP, and when a JPEG is cut
// off.
ImageHeader ReadHeader(const Bytes& content);

}  // namespace detector

#endif  // ASCEND310_INFER_IMAGE_HEADER_H_
