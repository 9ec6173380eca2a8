"""A C++ toolchain from the system's packages: Bazel's own description with our flags."""

load("@bazel_tools//tools/cpp:unix_cc_toolchain_config.bzl", "cc_toolchain_config")

_WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wcast-align",
    "-Wextra-semi",
    "-Wnon-virtual-dtor",
    "-Woverloaded-virtual",
    "-Wundef",
    "-Wvla",
    # A designated initializer leaves the other members at their defaults on purpose.
    "-Wno-missing-field-initializers",
    # No -Wshadow and no -Wpedantic: TRY is a (nested) GNU statement expression.
]

def compiler(name, cpu, cc, linker, warnings):
    """Defines the cc_toolchain NAME-CPU.

    Args:
      name: as selected by --compiler.
      cpu: Bazel's name of the processor.
      cc: path of the compiler driver, used for compiling and linking.
      linker: argument of -fuse-ld.
      warnings: flags that only this compiler takes.
    """
    cc_toolchain_config(
        name = "%s-%s-config" % (name, cpu),
        abi_libc_version = "glibc",
        abi_version = "gcc",
        compiler = name,
        cpu = cpu,
        cxx_builtin_include_directories = [
            "/usr/include",
            "/usr/lib/gcc",
            "/usr/lib/clang/19/include",
            "/usr/lib/llvm-19/lib/clang",
        ],
        host_system_name = "local",
        target_libc = "glibc",
        target_system_name = "local",
        toolchain_identifier = "%s-%s" % (name, cpu),
        compile_flags = [
            # Fast enough that tests do not wait, quick to compile, usable stack traces.
            "-O1",
            "-g1",
            "-fno-omit-frame-pointer",
            "-fstack-protector-strong",
        ] + _WARNINGS + warnings,
        dbg_compile_flags = [
            "-O0",
            "-g",
        ],
        # Without NDEBUG: our CHECK and the library's assert stay on in releases.
        opt_compile_flags = [
            "-O2",
            "-D_FORTIFY_SOURCE=2",
            "-ffunction-sections",
            "-fdata-sections",
        ],
        cxx_flags = ["-std=c++23"],
        link_flags = [
            "-fuse-ld=" + linker,
            "-Wl,-z,relro,-z,now",
            "-Wl,--as-needed",
        ],
        link_libs = [
            "-lstdc++",
            "-lm",
        ],
        opt_link_flags = ["-Wl,--gc-sections"],
        # The same bytes from the same sources, wherever the tree lies.
        unfiltered_compile_flags = [
            "-no-canonical-prefixes",
            "-Wno-builtin-macro-redefined",
            "-D__DATE__=\"redacted\"",
            "-D__TIMESTAMP__=\"redacted\"",
            "-D__TIME__=\"redacted\"",
        ],
        coverage_compile_flags = ["--coverage"],
        coverage_link_flags = ["--coverage"],
        supports_start_end_lib = True,
        tool_paths = {
            "ar": "/usr/bin/ar",
            "cpp": "/usr/bin/cpp",
            "dwp": "/usr/bin/dwp",
            "gcc": cc,
            "gcov": "/usr/bin/gcov",
            "ld": "/usr/bin/ld",
            "llvm-cov": "None",
            "nm": "/usr/bin/nm",
            "objcopy": "/usr/bin/objcopy",
            "objdump": "/usr/bin/objdump",
            "strip": "/usr/bin/strip",
        },
    )
    native.cc_toolchain(
        name = "%s-%s" % (name, cpu),
        all_files = ":empty",
        ar_files = ":empty",
        as_files = ":empty",
        compiler_files = ":empty",
        dwp_files = ":empty",
        linker_files = ":empty",
        objcopy_files = ":empty",
        strip_files = ":empty",
        supports_param_files = 1,
        toolchain_config = ":%s-%s-config" % (name, cpu),
        toolchain_identifier = "%s-%s" % (name, cpu),
    )
