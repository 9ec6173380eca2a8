// Speed of a core: codecs, ciphers, digests, on 64 KiB units.
//
//   ./dev bench codec_bench               on made-up text
//   PLATTER_BENCH_INPUT=disk.img ./dev bench codec_bench    on 64 MiB of the non-zero units of a
//   file
//
// "ratio" is output by input, units that do not shrink counted whole. zlib_6 and zstd_stream_3 do
// what qemu-img convert -c does for each cluster.
#include <benchmark/benchmark.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <functional>

#include "io/codec/cipher.h"
#include "io/codec/codec.h"
#include "io/codec/codec_test_util.h"
#include "io/codec/content_hash.h"

namespace platter {
namespace {

using testing::Buffer;
constexpr size_t kUnit = 65536;

const std::vector<Buffer>& Units() {
  static const std::vector<Buffer> units = [] {
    std::vector<Buffer> all;
    const char* path = getenv("PLATTER_BENCH_INPUT");
    if (!path) {
      for (size_t i = 0; i < 256; ++i) all.push_back(testing::TextBytes(kUnit, i));
      return all;
    }
    std::ifstream in(path, std::ios::binary | std::ios::ate);
    // Spread over the whole file: 1024 units of it.
    size_t count = static_cast<size_t>(in.tellg()) / kUnit,
           step = std::max<size_t>(1, count / 1024);
    Buffer unit(kUnit);
    for (size_t i = 0; i < count; i += step) {
      in.seekg(static_cast<std::streamoff>(i * kUnit));
      in.read(reinterpret_cast<char*>(unit.data()), kUnit);
      if (in.good() && !IsZero(unit)) all.push_back(unit);
    }
    CHECK(!all.empty());
    return all;
  }();
  return units;
}

// `compress`: from a unit into room for one byte less; 0 if it does not fit.
void RunCompressor(benchmark::State& state,
                   const std::function<size_t(ConstBytes, Bytes)>& compress) {
  const auto& units = Units();
  Buffer room(kUnit - 1);
  size_t in = 0, out = 0, next = 0;
  for (auto _ : state) {
    const Buffer& unit = units[next++ % units.size()];
    size_t used = compress(unit, room);
    in += unit.size();
    out += used ? used : unit.size();
  }
  state.SetBytesProcessed(static_cast<int64_t>(in));
  state.counters["ratio"] = static_cast<double>(out) / static_cast<double>(in);
}

void BM_Compress(benchmark::State& state, Codec::Id id) {
  auto made = Compressor::Create({.id = id, .level = static_cast<int>(state.range(0))});
  RunCompressor(state, [&](ConstBytes from, Bytes into) { return (*made)->Compress(from, into); });
}
BENCHMARK_CAPTURE(BM_Compress, deflate, Codec::kDeflate)->DenseRange(0, 9);
BENCHMARK_CAPTURE(BM_Compress, zstd, Codec::kZstd)->DenseRange(0, 9);
BENCHMARK_CAPTURE(BM_Compress, zlib, Codec::kZlib)->DenseRange(0, 9);

void BM_Peer_zlib_6(benchmark::State& state) {
  RunCompressor(state, [](ConstBytes from, Bytes into) -> size_t {
    z_stream stream = {};
    CHECK(deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) ==
          Z_OK);
    stream.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(from.data()));
    stream.avail_in = static_cast<uInt>(from.size());
    stream.next_out = reinterpret_cast<Bytef*>(into.data());
    stream.avail_out = static_cast<uInt>(into.size());
    int result = deflate(&stream, Z_FINISH);
    size_t used = result == Z_STREAM_END ? stream.total_out : 0;
    deflateEnd(&stream);
    return used;
  });
}
BENCHMARK(BM_Peer_zlib_6);

void BM_Peer_zstd_stream_3(benchmark::State& state) {
  RunCompressor(state, [](ConstBytes from, Bytes into) -> size_t {
    ZSTD_CCtx* context = ZSTD_createCCtx();
    ZSTD_outBuffer out{into.data(), into.size(), 0};
    ZSTD_inBuffer in{from.data(), from.size(), 0};
    size_t left = ZSTD_compressStream2(context, &out, &in, ZSTD_e_end);
    ZSTD_freeCCtx(context);
    return left == 0 ? out.pos : 0;
  });
}
BENCHMARK(BM_Peer_zstd_stream_3);

void BM_Decompress(benchmark::State& state, Codec::Id id) {
  auto made = Compressor::Create({.id = id});
  std::vector<Buffer> packed;
  for (const Buffer& unit : Units()) {
    Buffer room(kUnit - 1);
    size_t used = (*made)->Compress(unit, room);
    if (used == 0) continue;
    room.resize(used);
    packed.push_back(room);
  }
  Buffer into(kUnit);
  size_t next = 0;
  for (auto _ : state) CHECK(Decompress(id, packed[next++ % packed.size()], into).has_value());
  state.SetBytesProcessed(static_cast<int64_t>(next * kUnit));
}
BENCHMARK_CAPTURE(BM_Decompress, deflate, Codec::kDeflate);
BENCHMARK_CAPTURE(BM_Decompress, zlib, Codec::kZlib);
BENCHMARK_CAPTURE(BM_Decompress, zstd, Codec::kZstd);

void BM_Cipher(benchmark::State& state, Cipher::Mode mode, Cipher::Iv iv, size_t key,
               bool encrypt) {
  auto cipher = Cipher::Create(mode, iv, Cipher::Tweak::kHost,
                               Secret(ConstBytes(testing::RandomBytes(key, 1))));
  Buffer data(static_cast<size_t>(state.range(0)));
  uint64_t sector = 0;
  for (auto _ : state) {
    CHECK((encrypt ? (*cipher)->Encrypt(sector, data) : (*cipher)->Decrypt(sector, data))
              .has_value());
    sector += data.size() / Cipher::kSector;
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * state.range(0));
}
using Mode = Cipher::Mode;
using Iv = Cipher::Iv;
BENCHMARK_CAPTURE(BM_Cipher, xts256_plain64_encrypt, Mode::kXts, Iv::kPlain64, 64, true)
    ->Arg(512)
    ->Arg(4096)
    ->Arg(65536);
BENCHMARK_CAPTURE(BM_Cipher, xts256_plain64_decrypt, Mode::kXts, Iv::kPlain64, 64, false)
    ->Arg(65536);
BENCHMARK_CAPTURE(BM_Cipher, cbc256_essiv_encrypt, Mode::kCbc, Iv::kEssivSha256, 32, true)
    ->Arg(65536);
BENCHMARK_CAPTURE(BM_Cipher, cbc128_plain64_decrypt, Mode::kCbc, Iv::kPlain64, 16, false)
    ->Arg(65536);

void BM_ContentHashLeaf(benchmark::State& state) {
  size_t next = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(ContentHash::Leaf(Units()[next++ % Units().size()]));
  }
  state.SetBytesProcessed(static_cast<int64_t>(next * kUnit));
}
BENCHMARK(BM_ContentHashLeaf);

}  // namespace
}  // namespace platter

BENCHMARK_MAIN();
