// A reader of XML as configuration files use it: elements, attributes and text.
//
// Read: XML 1.0 in UTF-8 (a byte order mark is skipped), comments, processing instructions, CDATA,
// the five predefined entities and character references. Refused: a DOCTYPE, and with it every
// entity of the document's own (so nothing expands and nothing is fetched), other encodings, more
// than kMostDepth elements within one another. Namespaces are not resolved: names come without
// their prefix.
//
// Source: Extensible Markup Language (XML) 1.0, Fifth Edition.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace platter {

// Used by one thread. Views into the document are valid while it is.
class XmlReader {
 public:
  static constexpr size_t kMostDepth = 64;

  enum class Event : uint8_t {
    kStart,  // name, attributes
    kEnd,    // name; comes for <a/>, too
    kText,   // text; a run of text may come in pieces
    kDone,   // the document is complete
  };

  explicit XmlReader(std::string_view document);

  // kCorrupt with the line, kUnsupported for what is refused. After an error, or kDone, no more.
  Result<Event> Next();

  std::string_view name() const { return name_; }
  const std::string& text() const { return text_; }
  // Of a kStart, the value of the attribute of this name (without prefix); "" where it has none.
  std::string_view Attribute(std::string_view name) const;
  size_t depth() const { return open_.size(); }  // elements that are open, after this event
  size_t line() const;                           // of where the reader is, from 1 on

 private:
  struct Named {
    std::string_view name;
    std::string value;
  };

  std::unexpected<Error> Bad(std::string_view what) const;
  bool Take(std::string_view literal);
  void SkipSpace();
  Result<std::string_view> Until(std::string_view mark, std::string_view what);
  Result<std::string_view> TakeName();
  Result<std::string> Decode(std::string_view raw) const;
  Result<Event> Start();
  Result<Event> End();
  Result<> TakeAttribute();
  Result<> SkipInstruction();

  const std::string_view document_;
  size_t at_ = 0;
  std::vector<std::string_view> open_;  // names with prefix
  std::string_view name_;
  std::string text_;
  std::vector<Named> attributes_;
  bool pending_end_ = false;  // of an element without content
  bool seen_root_ = false;
};

}  // namespace platter
