#include "formats/format.h"

namespace platter {

void CheckReport::Add(Finding::Kind kind, std::string text, bool was_fixed) {
  // A thoroughly broken image has millions of findings; the first ones tell the story.
  constexpr size_t kKept = 1000;
  if (findings.size() < kKept) findings.push_back({kind, std::move(text), was_fixed});
  switch (kind) {
    case Finding::kLeak: was_fixed ? ++leaks_fixed : ++leaks; break;
    case Finding::kCorruption: was_fixed ? ++corruptions_fixed : ++corruptions; break;
    case Finding::kError: ++errors; break;
  }
}

}  // namespace platter
