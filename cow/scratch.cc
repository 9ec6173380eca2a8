#include "cow/scratch.h"

#include <utility>

#include "formats/format.h"
#include "io/file_store.h"
#include "io/temp_file.h"

namespace platter {

Result<std::unique_ptr<Disk>> StackScratch(std::unique_ptr<Disk> parents) {
  const Format* format = TRY(FindFormat("qcow2"));
  std::unique_ptr<Store> store =
      TRY(FileStore::FromFd(TRY(OpenTempFile()), "scratch", {.writable = true, .lock = false}));
  CreateOptions create{.size = parents->info().size};
  TRY_AS("scratch", format->create(*store, create));
  auto top = TRY_AS("scratch", format->open(std::move(store), {.writable = true, .fresh = true}));
  return Disk::Stack(std::move(top), "", std::move(parents));
}

}  // namespace platter
