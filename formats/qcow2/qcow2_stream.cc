#include "formats/qcow2/qcow2_stream.h"

#include <utility>
#include <vector>

#include "formats/qcow2/qcow2_pieces.h"
#include "formats/qcow2/qcow2_plan.h"
#include "formats/unit_set.h"

namespace platter::qcow2 {
namespace {

class Qcow2Stream final : public ImageStream {
 public:
  explicit Qcow2Stream(Header header) : header_(std::move(header)) {}

  uint64_t unit() const override { return header_.cluster_size(); }

  Result<> Head(const UnitSet& used, const ByteSink& sink) override {
    std::vector<uint64_t> tables = TablesOf(used);
    ImageLayout layout = TRY(LayOut(header_, 0, tables.size(), used.count()));
    header_.l1_offset = layout.l1.empty() ? 0 : layout.l1.offset;
    header_.refcount_table_offset = layout.refcount_table.offset;
    header_.refcount_table_clusters =
        static_cast<uint32_t>(layout.refcount_table.length >> header_.cluster_bits);
    TRY(sink(TRY(BuildHeader(header_))));

    auto put = [&](uint64_t, ConstBytes bytes) { return sink(bytes); };
    TRY(InPieces(layout.refcount_table.length, put, [&](uint64_t at, Bytes piece) {
      FillTable(at, piece, layout.refcount_blocks.length >> header_.cluster_bits, [&](uint64_t i) {
        return layout.refcount_blocks.offset + (i << header_.cluster_bits);
      });
    }));
    TRY(InPieces(layout.refcount_blocks.length, put, [&](uint64_t at, Bytes piece) {
      FillRefcounts(header_, at, piece, layout.end >> header_.cluster_bits);
    }));
    TRY(InPieces(layout.l1.length, put,
                 [&](uint64_t at, Bytes piece) { FillL1(at, piece, tables, layout.l2.offset); }));
    return PutTables(used, tables, layout.data.offset, sink);
  }

 private:
  // Indexes of the L1 entries that have a table, ascending.
  std::vector<uint64_t> TablesOf(const UnitSet& used) const {
    std::vector<uint64_t> tables;
    const uint64_t entries = header_.l2_entries();
    for (Range run = used.Next(0); !run.empty();) {
      tables.push_back(run.offset / entries);
      run = used.Next((run.offset / entries + 1) * entries);
    }
    return tables;
  }

  void FillL1(uint64_t at, Bytes piece, const std::vector<uint64_t>& tables, uint64_t l2) const {
    auto next = std::ranges::lower_bound(tables, at / 8);
    for (; next != tables.end() && *next * 8 < at + piece.size(); ++next) {
      auto number = static_cast<uint64_t>(next - tables.begin());
      StoreAt(piece, *next * 8 - at, be64(kCopied | (l2 + (number << header_.cluster_bits))));
    }
  }

  // One after the other; each unit of data has the next cluster.
  Result<> PutTables(const UnitSet& used, const std::vector<uint64_t>& tables, uint64_t data,
                     const ByteSink& sink) const {
    const uint64_t entries = header_.l2_entries();
    const uint32_t width = header_.l2_entry_size();
    std::vector<std::byte> table(header_.cluster_size());
    for (uint64_t index : tables) {
      std::ranges::fill(table, std::byte{0});
      const uint64_t first = index * entries;
      for (uint64_t unit = first; unit < first + entries;) {
        Range run = used.Next(unit).Intersect({first, entries});
        if (run.empty()) break;
        for (unit = run.offset; unit < run.end(); ++unit, data += header_.cluster_size()) {
          StoreAt(Bytes(table), (unit - first) * width, be64(kCopied | data));
          if (width == 16) StoreAt(Bytes(table), (unit - first) * width + 8, be64(kAllAllocated));
        }
      }
      TRY(sink(table));
    }
    return {};
  }

  static constexpr uint64_t kAllAllocated = 0xffffffff;  // of the subclusters

  Header header_;
};

}  // namespace

Result<std::unique_ptr<ImageStream>> StreamQcow2(const CreateOptions& options) {
  ImagePlan plan = TRY(PlanImage(options));
  if (plan.header.has_data_file() || plan.header.crypt_method != kCryptNone ||
      plan.preallocation != Preallocation::kOff) {
    return Fail(Code::kUnsupported,
                "a data file, encryption and preallocation do not go into a stream");
  }
  return std::make_unique<Qcow2Stream>(std::move(plan.header));
}

}  // namespace platter::qcow2
