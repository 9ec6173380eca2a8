// What check finds in a VDI image, and what repair does about it.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "formats/format.h"
#include "formats/vdi/vdi_blocks.h"
#include "formats/vdi/vdi_parse.h"
#include "io/store.h"

namespace platter::vdi {

struct Survey {
  Header header;
  uint64_t file_size = 0;
  CheckReport report;
  uint32_t end = 0;        // host blocks: behind the last one in use
  uint64_t past_end = 0;   // entries that name what the file does not hold at all
  uint64_t shared = 0;     // entries that name a host block which another one names before
  bool cut = false;        // the file ends inside a host block in use
  std::vector<Run> holes;  // below `end`, used by nothing
};

Result<Survey> SurveyImage(Store& file);

// Repairs what `survey` found, as far as `repair` goes and no data is lost by it.
Result<> RepairImage(Store& file, const Survey& survey, CheckOptions::Repair repair);

}  // namespace platter::vdi
