#include "base/xml.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/bytes.h"

namespace platter {

namespace {

constexpr std::string_view kSpace = " \t\r\n";

std::string_view WithoutPrefix(std::string_view name) {
  size_t colon = name.rfind(':');
  return colon == name.npos ? name : name.substr(colon + 1);
}

// UTF-8; empty for what is no character.
std::string Encode(uint32_t code) {
  auto byte = [](uint32_t value) { return static_cast<char>(value); };
  if (code == 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return {};
  if (code < 0x80) return {byte(code)};
  if (code < 0x800) return {byte(0xc0 | code >> 6), byte(0x80 | (code & 63))};
  if (code < 0x10000) {
    return {byte(0xe0 | code >> 12), byte(0x80 | (code >> 6 & 63)), byte(0x80 | (code & 63))};
  }
  return {byte(0xf0 | code >> 18), byte(0x80 | (code >> 12 & 63)), byte(0x80 | (code >> 6 & 63)),
          byte(0x80 | (code & 63))};
}

// What "&name;" stands for; empty for what is not known.
std::string Expand(std::string_view name) {
  if (name == "lt") return "<";
  if (name == "gt") return ">";
  if (name == "amp") return "&";
  if (name == "apos") return "'";
  if (name == "quot") return "\"";
  if (!name.starts_with('#')) return {};
  name.remove_prefix(1);
  const bool hex = name.starts_with('x');
  if (hex) name.remove_prefix(1);
  uint32_t code = 0;
  auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), code, hex ? 16 : 10);
  if (error != std::errc() || end != name.data() + name.size()) return {};
  return Encode(code);
}

}  // namespace

XmlReader::XmlReader(std::string_view document) : document_(document) { Take("\xef\xbb\xbf"); }

size_t XmlReader::line() const {
  return 1 + static_cast<size_t>(std::ranges::count(document_.substr(0, at_), '\n'));
}

std::unexpected<Error> XmlReader::Bad(std::string_view what) const {
  return Fail(Code::kCorrupt, "XML line {}: {}", line(), what);
}

bool XmlReader::Take(std::string_view literal) {
  if (!document_.substr(at_).starts_with(literal)) return false;
  at_ += literal.size();
  return true;
}

void XmlReader::SkipSpace() {
  at_ = std::min(document_.find_first_not_of(kSpace, at_), document_.size());
}

// What stands before `mark`, which is stepped over.
Result<std::string_view> XmlReader::Until(std::string_view mark, std::string_view what) {
  size_t end = document_.find(mark, at_);
  if (end == document_.npos) return Bad(what);
  std::string_view found = document_.substr(at_, end - at_);
  at_ = end + mark.size();
  return found;
}

Result<std::string_view> XmlReader::TakeName() {
  size_t end = std::min(document_.find_first_of(" \t\r\n/>=<&'\"?!", at_), document_.size());
  std::string_view name = document_.substr(at_, end - at_);
  if (name.empty()) return Bad("a name is missing");
  at_ = end;
  return name;
}

Result<std::string> XmlReader::Decode(std::string_view raw) const {
  std::string text;
  while (true) {
    size_t mark = std::min(raw.find('&'), raw.size());
    text += raw.substr(0, mark);
    if (mark == raw.size()) break;
    raw.remove_prefix(mark + 1);
    size_t end = raw.find(';');
    std::string expanded = end == raw.npos ? std::string() : Expand(raw.substr(0, end));
    if (expanded.empty()) return Bad("an entity that is not known");
    text += expanded;
    raw.remove_prefix(end + 1);
  }
  if (text.find('\0') != text.npos) return Bad("a NUL byte (only UTF-8 is read)");
  return text;
}

std::string_view XmlReader::Attribute(std::string_view name) const {
  auto found = std::ranges::find(attributes_, name, &Named::name);
  return found == attributes_.end() ? std::string_view() : found->value;
}

Result<> XmlReader::TakeAttribute() {
  std::string_view name = TRY(TakeName());
  SkipSpace();
  if (!Take("=")) return Bad("an attribute without a value");
  SkipSpace();
  const char quote = at_ < document_.size() ? document_[at_] : '\0';
  if (quote != '"' && quote != '\'') return Bad("an attribute's value without quotes");
  ++at_;
  std::string_view raw = TRY(Until({&quote, 1}, "an attribute's value does not end"));
  if (raw.find('<') != raw.npos) return Bad("'<' in an attribute's value");
  // The declarations of prefixes look like attributes and are none.
  std::string value = TRY(Decode(raw));
  if (name == "xmlns" || name.starts_with("xmlns:")) return {};
  attributes_.push_back({WithoutPrefix(name), std::move(value)});
  return {};
}

// After "<".
Result<XmlReader::Event> XmlReader::Start() {
  if (open_.empty() && seen_root_) return Bad("a second root element");
  if (open_.size() == kMostDepth) {
    return Fail(Code::kUnsupported, "XML line {}: more than {} elements within one another", line(),
                kMostDepth);
  }
  std::string_view name = TRY(TakeName());
  attributes_.clear();
  while (true) {
    const size_t before = at_;
    SkipSpace();
    if (Take("/>")) {
      pending_end_ = true;
      break;
    }
    if (Take(">")) break;
    if (at_ == document_.size()) return Bad("a tag does not end");
    if (at_ == before) return Bad("a tag with something that is no attribute");
    TRY(TakeAttribute());
  }
  seen_root_ = true;
  open_.push_back(name);
  name_ = WithoutPrefix(name);
  return Event::kStart;
}

// After "</".
Result<XmlReader::Event> XmlReader::End() {
  std::string_view name = TRY(TakeName());
  SkipSpace();
  if (!Take(">")) return Bad("an end tag does not end");
  if (open_.empty() || open_.back() != name) return Bad("an end tag that matches no start");
  open_.pop_back();
  name_ = WithoutPrefix(name);
  return Event::kEnd;
}

// After "<?".
Result<> XmlReader::SkipInstruction() {
  std::string_view body = TRY(Until("?>", "an instruction does not end"));
  size_t encoding = body.starts_with("xml") ? body.find("encoding") : body.npos;
  if (encoding == body.npos) return {};
  std::string lower(body.substr(encoding));
  std::ranges::transform(lower, lower.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  for (std::string_view known : {"utf-8", "us-ascii"}) {
    if (lower.find(known) != lower.npos) return {};
  }
  return Fail(Code::kUnsupported, "XML in an encoding other than UTF-8");
}

Result<XmlReader::Event> XmlReader::Next() {
  if (std::exchange(pending_end_, false)) {
    open_.pop_back();
    return Event::kEnd;
  }
  while (at_ < document_.size()) {
    if (Take("<!--")) {
      TRY(Until("-->", "a comment does not end"));
    } else if (Take("<?")) {
      TRY(SkipInstruction());
    } else if (Take("<![CDATA[")) {
      text_ = TRY(Until("]]>", "a CDATA section does not end"));
      if (open_.empty()) return Bad("text outside of the root element");
      return Event::kText;
    } else if (Take("<!")) {
      return Fail(Code::kUnsupported, "XML line {}: a DOCTYPE is not read", line());
    } else if (Take("</")) {
      return End();
    } else if (Take("<")) {
      return Start();
    } else {
      size_t end = std::min(document_.find('<', at_), document_.size());
      std::string_view raw = document_.substr(at_, end - at_);
      text_ = TRY(Decode(raw));
      at_ = end;
      if (!open_.empty()) return Event::kText;
      if (raw.find_first_not_of(kSpace) != raw.npos) return Bad("text outside of the root element");
    }
  }
  if (!open_.empty()) return Bad("the document ends within an element");
  if (!seen_root_) return Bad("there is no element");
  return Event::kDone;
}

}  // namespace platter
