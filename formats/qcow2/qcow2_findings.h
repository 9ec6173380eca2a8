// What a check has found so far, with what could be done about it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "formats/format.h"

namespace platter::qcow2::check {

// What mends a finding.
enum class Remedy : uint8_t {
  kNone,     // nothing that keeps all the data: the user has to decide
  kRaise,    // a refcount goes up
  kLower,    // a refcount goes down
  kFlag,     // a "copied" flag follows its refcount
  kRebuild,  // new refcount structures
};
constexpr size_t kRemedies = 5;

// Collects findings. Texts are made by a callback, because a hostile image has millions of them and
// only the first thousand of each sort are kept; the counts go on.
class Findings {
 public:
  using Kind = CheckReport::Finding::Kind;
  static constexpr size_t kKept = 1000;

  struct Note {
    Kind kind;
    Remedy remedy;
    std::string text;
  };

  // `count` findings of which one text speaks.
  template <class Text>
  void Add(Kind kind, Remedy remedy, Text&& text, uint64_t count = 1) {
    counts_[kind][static_cast<size_t>(remedy)] += count;
    std::vector<Note>& notes = kept(kind);
    if (notes.size() < kKept) notes.push_back(Note{kind, remedy, text()});
  }

  // Appends what another thread has found.
  void Take(Findings&& other) {
    for (size_t kind = 0; kind < counts_.size(); ++kind) {
      for (size_t i = 0; i < kRemedies; ++i) counts_[kind][i] += other.counts_[kind][i];
    }
    TakeNotes(serious_, std::move(other.serious_));
    TakeNotes(leaks_, std::move(other.leaks_));
  }

  uint64_t count(Kind kind) const {
    uint64_t sum = 0;
    for (uint64_t count : counts_[kind]) sum += count;
    return sum;
  }
  uint64_t count(Kind kind, Remedy remedy) const {
    return counts_[kind][static_cast<size_t>(remedy)];
  }
  // Leaks apart: a flood of them must not crowd out what costs data.
  const std::vector<Note>& serious() const { return serious_; }
  const std::vector<Note>& leaks() const { return leaks_; }

 private:
  std::vector<Note>& kept(Kind kind) {
    return kind == CheckReport::Finding::kLeak ? leaks_ : serious_;
  }
  static void TakeNotes(std::vector<Note>& into, std::vector<Note>&& from) {
    for (Note& note : from) {
      if (into.size() == kKept) return;
      into.push_back(std::move(note));
    }
  }

  std::array<std::array<uint64_t, kRemedies>, 3> counts_{};
  std::vector<Note> serious_, leaks_;
};

// What refers to clusters that several things refer to: the first few names of each.
class Owners {
 public:
  template <class Name>
  void Add(uint64_t cluster, Name&& name) {
    Entry& entry = entries_[cluster];
    if (entry.names.size() < kNamed) {
      entry.names.push_back(name());
    } else {
      ++entry.more;
    }
  }

  void Take(Owners&& other) {
    for (auto& [cluster, from] : other.entries_) {
      Entry& into = entries_[cluster];
      into.more += from.more;
      for (std::string& name : from.names) {
        if (into.names.size() < kNamed) {
          into.names.push_back(std::move(name));
        } else {
          ++into.more;
        }
      }
    }
  }

  // "a", "a and b", "a, b, c, d and 5 more".
  std::string Describe(uint64_t cluster) const {
    auto at = entries_.find(cluster);
    if (at == entries_.end()) return "nothing that can be named";
    const auto& [names, more] = at->second;
    std::string text;
    for (size_t i = 0; i < names.size(); ++i) {
      if (i > 0) text += more == 0 && i + 1 == names.size() ? " and " : ", ";
      text += names[i];
    }
    if (more > 0) text += " and " + std::to_string(more) + " more";
    return text;
  }

 private:
  static constexpr size_t kNamed = 4;
  struct Entry {
    std::vector<std::string> names;
    uint64_t more = 0;
  };
  std::unordered_map<uint64_t, Entry> entries_;
};

}  // namespace platter::qcow2::check
