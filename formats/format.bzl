"""The targets that the folder of every format has."""

load("//tests/fuzz:fuzz.bzl", "fuzz_target")

def image_format(name, deps = [], test_deps = [], interop = [], medium = []):
    """The library of a format, what its tests share, its tests and its fuzz targets.

    By file name: *_test.cc are tests, *_fuzz.cc fuzz targets, *_testing.* what tests share (the
    library `testing`), and all else is the library NAME. Other folders see the descriptor
    (NAME.h); the rest is between the files of the folder.

    Args:
      name: of the library.
      deps: what the library needs beside what every format does.
      test_deps: the same of the library `testing` and of the tests.
      interop: tests, without ".cc", that go through files, chains and QEMU's programs.
      medium: other tests that are not small. NAME_model_test always is medium, and runs once more
        under ThreadSanitizer.
    """
    native.cc_library(
        name = name,
        srcs = native.glob(
            ["*.cc"],
            exclude = [
                "*_test.cc",
                "*_fuzz.cc",
                "*_testing.cc",
            ],
        ),
        hdrs = native.glob(
            ["*.h"],
            exclude = ["*_testing.h"],
        ),
        visibility = [
            "//formats:__subpackages__",
            "//tests:__subpackages__",
        ],
        deps = [
            "//base",
            "//formats:format",
            "//io",
            "//io/codec",
            "//third_party:fmt",
        ] + deps,
    )
    shared = [
        ":" + name,
        "//base",
        "//formats:format",
        "//formats/testing",
        "//io",
        "//io:testing",
        "//io/codec",
        "//io/engine",
        "//io/testing",
        "//third_party:fmt",
    ] + deps
    native.cc_library(
        name = "testing",
        testonly = True,
        srcs = native.glob(["*_testing.cc"]),
        hdrs = native.glob(["*_testing.h"]),
        deps = shared + ["//tests/model"] + test_deps,
    )
    for source in native.glob(["*_test.cc"]):
        test = source[:-len(".cc")]
        model = test == name + "_model_test"
        native.cc_test(
            name = test,
            size = "medium" if model or test in interop + medium else "small",
            srcs = [source],
            tags = ["tsan"] if model else [],
            deps = shared + [
                ":testing",
                "//tests/model",
                "//third_party:gtest_main",
            ] + test_deps + ([
                "//cow",
                "//formats",
                "//tests/interop:qemu",
            ] if test in interop else []),
        )
    for source in native.glob(["*_fuzz.cc"]):
        fuzz_target(
            name = source[:-len(".cc")],
            srcs = [source],
            deps = shared,
        )
