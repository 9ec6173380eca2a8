"""Fuzz targets that are also plain tests."""

def fuzz_target(name, srcs, deps, size = "small", tags = []):
    """A libFuzzer target and the test that replays everything it ever crashed on.

    Defines NAME, a binary for `./dev fuzz NAME` (clang-19 only, hence not part of //...), and
    NAME_corpus_test, which runs the same entry point over each file of tests/corpus/NAME/ and
    belongs to the ordinary tests, sanitized or not.

    Args:
      name: by convention ending in _fuzz; unique in the repository.
      srcs: define LLVMFuzzerTestOneInput.
      deps: what they use.
      size: of the replaying test.
      tags: of the replaying test.
    """
    native.cc_library(
        name = name + "_entry",
        testonly = True,
        srcs = srcs,
        tags = tags,
        deps = deps,
        alwayslink = True,
    )
    native.cc_binary(
        name = name,
        testonly = True,
        linkopts = ["-fsanitize=fuzzer"],
        tags = ["fuzz", "manual"],
        deps = [":" + name + "_entry"],
    )
    native.cc_test(
        name = name + "_corpus_test",
        size = size,
        args = ["tests/corpus/" + name],
        data = ["//tests/corpus:all"],
        tags = tags,
        deps = [
            ":" + name + "_entry",
            "//tests/fuzz:replay",
        ],
    )
