#pragma once

namespace platter {
inline constexpr char kVersion[] = "0.1.0";
}
