// What products take: --for PRODUCT chooses format, options and size of a new image.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace platter {

struct Product {
  std::string_view name;  // "azure"
  std::string_view format;
  // Options as after -o. Some products import a file that is written once, which is no disk for a
  // machine to begin with: then those of a new, empty image differ.
  std::string_view options, create_options;
  uint64_t multiple;     // bytes: of which the size has to be a multiple
  std::string_view why;  // whose words these are
};

std::span<const Product> AllProducts();
// Their names, for the help.
std::vector<std::string> ProductNames();

// What the user said of a new image, and what it becomes.
struct ImageWish {
  std::string product;  // of --for; empty: nothing is chosen
  std::string format;   // empty: not given
  std::map<std::string, std::string> options;
  uint64_t multiple = 1;  // bytes
};

// Fills in what `wish.product` needs. Returns a line that says what was chosen, empty without a
// product. kUnsupported for an unknown product, kRefused where format or an option contradict it.
Result<std::string> ChooseFor(ImageWish& wish, bool create);

}  // namespace platter
