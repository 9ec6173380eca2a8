#include "io/unpack/unpacker.h"

#include <algorithm>
#include <utility>

namespace platter {

namespace {
constexpr size_t kChunk = 256 * kKiB;
}

Unpacker::Unpacker(Store& packed, Range host, std::string_view name,
                   std::unique_ptr<Decoder> decoder)
    : packed_(packed),
      host_(host),
      name_(name),
      decoder_(std::move(decoder)),
      at_(host.offset),
      chunk_(std::min<uint64_t>(kChunk, host.length)) {}

std::unexpected<Error> Unpacker::Failed(Error error) const {
  return std::unexpected(
      std::move(error).WithPrefix(fmt::format("{} data near offset {:#x}", name_, at_)));
}

Result<> Unpacker::Refill() {
  if (!input_.empty() || at_ == host_.end()) return {};
  Bytes chunk = chunk_.bytes().first(std::min<uint64_t>(chunk_.size(), host_.end() - at_));
  TRY(packed_.Read(at_, chunk));
  input_ = chunk;
  return {};
}

// Steps over padding to the next member; false: there is none.
Result<bool> Unpacker::FindMember() {
  while (true) {
    TRY(Refill());
    if (input_.empty()) return false;
    auto member = std::ranges::find_if(input_, [](std::byte b) { return b != std::byte{0}; });
    const auto zeros = static_cast<size_t>(member - input_.begin());
    at_ += zeros;
    input_ = input_.subspan(zeros);
    if (!input_.empty()) return true;
  }
}

Result<size_t> Unpacker::Next(Bytes into) {
  size_t made = 0;
  while (made < into.size() && !ended_) {
    if (!in_member_) {
      if (!TRY(FindMember())) {
        ended_ = true;
        break;
      }
      if (auto started = decoder_->Restart(); !started) return Failed(std::move(started.error()));
      in_member_ = true;
    }
    TRY(Refill());
    auto step = decoder_->Decode(input_, into.subspan(made));
    if (!step) return Failed(std::move(step.error()));
    at_ += step->taken;
    input_ = input_.subspan(step->taken);
    made += step->made;
    in_member_ = !step->ended;
    if (step->ended || step->taken > 0 || step->made > 0) continue;
    if (input_.empty() && at_ == host_.end()) {
      return Fail(Code::kCorrupt, "{} data ends in the middle of a member, at offset {:#x}", name_,
                  at_);
    }
    // It got bytes and room and did nothing.
    return Fail(Code::kCorrupt, "{} data near offset {:#x}: invalid data", name_, at_);
  }
  return made;
}

}  // namespace platter
