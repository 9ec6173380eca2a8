#include "tests/schedule/bench.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/check.h"
#include "io/engine/engine.h"

namespace platter::schedule {

void Bench::Put(Range range, int value) {
  std::vector<std::byte> bytes(range.length, static_cast<std::byte>(value));
  CHECK(Write(layer(), range.offset, ConstBytes(bytes)));
}

std::vector<std::byte> Bench::Get(Range range) {
  std::vector<std::byte> bytes(range.length);
  CHECK(Read(layer(), range.offset, Bytes(bytes)));
  return bytes;
}

std::string Bench::Expect(Range range, std::initializer_list<int> values) {
  std::vector<std::byte> bytes(range.length);
  auto read = Read(layer(), range.offset, Bytes(bytes));
  return read ? Judge(bytes, range.offset, values) : read.error().text();
}

std::string Judge(ConstBytes bytes, uint64_t offset, std::initializer_list<int> values) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    int is = std::to_integer<int>(bytes[i]);
    if (std::ranges::find(values, is) == values.end())
      return fmt::format("byte {} is {:#x}", offset + i, is);
  }
  return "";
}

std::string First(std::initializer_list<std::string> verdicts) {
  for (const std::string& verdict : verdicts) {
    if (!verdict.empty()) return verdict;
  }
  return "";
}

Scenario TwoWriters(BenchPtr bench) {
  return {{[=] { bench->Put({0, 100}, 1); }, [=] { bench->Put({200, 100}, 2); }}, [=] {
            return First({bench->Expect({0, 100}, {1}), bench->Expect({200, 100}, {2}),
                          bench->Expect({100, 100}, {0}), bench->Expect({300, 200}, {0}),
                          bench->Close()});
          }};
}

Scenario OverlappingWriters(BenchPtr bench) {
  const uint64_t unit = bench->unit;
  return {{[=] { bench->Put({100, 2 * unit}, 1); }, [=] { bench->Put({unit + 50, 2 * unit}, 2); },
           [=] { bench->Put({0, 3 * unit}, 3); }},
          [=] {
            return First({bench->Expect({0, 100}, {3}), bench->Expect({100, unit - 50}, {1, 3}),
                          bench->Expect({2 * unit + 100, unit - 100}, {2, 3}),
                          bench->Expect({3 * unit, 50}, {2}),
                          bench->Expect({3 * unit + 50, unit - 50}, {0}), bench->Close()});
          }};
}

namespace {

// Drops unit 0 and writes unit 1, which may get its space.
void Reuse(Bench& bench) {
  CHECK(Discard(bench.layer(), {0, bench.unit}));
  CHECK(bench.layer().Flush());
  bench.Put({bench.unit, bench.unit}, 0xb);
}

}  // namespace

Scenario ReaderAgainstReuse(BenchPtr bench) {
  const uint64_t unit = bench->unit;
  bench->Put({0, unit}, 0xa);
  CHECK(bench->layer().Flush());
  auto seen = std::make_shared<std::vector<std::byte>>();
  return {{[=] { *seen = bench->Get({0, unit}); }, [=] { Reuse(*bench); }}, [=] {
            return First({Judge(*seen, 0, {0xa, 0}), bench->Expect({0, unit}, {0}),
                          bench->Expect({unit, unit}, {0xb}), bench->Close()});
          }};
}

Scenario WriterAgainstReuse(BenchPtr bench) {
  const uint64_t unit = bench->unit;
  bench->Put({0, unit}, 0xa);
  CHECK(bench->layer().Flush());
  return {{[=] { bench->Put({10, 20}, 0xc); }, [=] { Reuse(*bench); }}, [=] {
            return First({bench->Expect({unit, unit}, {0xb}), bench->Expect({10, 20}, {0, 0xc}),
                          bench->Expect({30, unit - 30}, {0}), bench->Close()});
          }};
}

Scenario ReaderAgainstFreshUnit(BenchPtr bench) {
  const uint64_t unit = bench->unit;
  bench->Put({0, unit}, 0x5);
  CHECK(Discard(bench->layer(), {0, unit}));
  CHECK(bench->layer().Flush());
  auto seen = std::make_shared<std::vector<std::byte>>();
  return {{[=] { bench->Put({unit, 100}, 1); }, [=] { *seen = bench->Get({unit, unit}); }}, [=] {
            return First({Judge(ConstBytes(*seen).first(100), 0, {0, 1}),
                          Judge(ConstBytes(*seen).subspan(100), 100, {0}), bench->Close()});
          }};
}

Scenario DiscardAgainstWriter(BenchPtr bench, bool fresh) {
  if (!fresh) bench->Put({0, bench->unit}, 0xa);
  return {
      {[=] { bench->Put({10, 20}, 1); },
       [=] {
         CHECK(Discard(bench->layer(), {0, bench->unit}));
         bench->Put({200, 20}, 2);
       }},
      [=] {
        return First({bench->Expect({10, 20}, {0, 1}), bench->Expect({200, 20}, {2}),
                      bench->Expect({0, 10}, {0}), bench->Expect({30, 170}, {0}), bench->Close()});
      }};
}

}  // namespace platter::schedule
