// The comparison of the references that were counted with the refcounts that are stored.
#pragma once

#include "formats/qcow2/qcow2_check_survey.h"

namespace platter::qcow2::check {

// Reports clusters whose stored refcount is too low or too high, overlapping structures, and
// "copied" flags that do not agree with the refcount, each with what refers to the cluster. Sets
// survey.rebuild where the refcount structures themselves are damaged, overlapped or missing.
// Returns the end of the last cluster in use, in bytes: qemu-img's "image-end-offset".
uint64_t CompareRefcounts(const Image& image, Survey& survey);

// The clusters [first, end) that refcount block `index` covers, up to the last one that the image
// may refer to.
struct Clusters {
  uint64_t first, end;
};
Clusters BlockClusters(const Image& image, uint64_t index);

// How many refcount blocks cover the file.
uint64_t BlocksInFile(const Image& image);

}  // namespace platter::qcow2::check
